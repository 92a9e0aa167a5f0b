"""RMSprop beside SGD and Adam, tuned alike, in eleven fields: `python -m experiments.fields`.

layers.py     the layers of the networks
tasks.py      the tasks: data, network, loss and score of each
study.py      the optimizers, the search for a rate, and the file of what is trained
page.py       the tables and the figure
"""
