"""How often every slice is looked at, and at which pixel sizes; the answer is the mean.

The network's windows and tokens fall elsewhere at another size, so that its errors differ, and two looks agree on more
of what is right than one (Training/EXPERIMENTS.md, "A second look"). It imports nothing: whoever only asks how many
looks there are must not wait for torch.
"""

LOOKS = (1.0, 7 / 6)  # pixel sizes, times the preparation's own
