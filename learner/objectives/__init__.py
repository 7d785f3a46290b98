"""What is optimised: samples, advantages and losses, as pure functions. Open `loss.py` first."""
