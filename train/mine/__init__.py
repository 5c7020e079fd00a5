"""Hard-negative mining: `python -m train.mine`."""
