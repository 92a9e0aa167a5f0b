def rows(rule, undetermined=None):
    return []
