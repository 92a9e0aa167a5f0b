def others(run):
    return []
