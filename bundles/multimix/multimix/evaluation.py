class Evaluation:
    def __init__(self, **k): pass
