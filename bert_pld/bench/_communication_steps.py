"""stub"""
def predict_and_measure(*a): return {}
def report_steps(r): return []
