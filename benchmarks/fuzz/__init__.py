"""Whatever bytes come, does every decoder answer with a value or with its boundary's own error? `targets.py` lists the
decoders, `mutations.py` makes bytes of valid examples; tests feed them a few hundred, `python -m benchmarks.fuzz` many.
"""
