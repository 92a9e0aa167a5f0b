"""CIFAR-10 with RMSprop, end to end: data, model, training, results."""
