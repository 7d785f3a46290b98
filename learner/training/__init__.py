"""How a step is taken: model, packing, ranks. Open `trainer.py` first."""
