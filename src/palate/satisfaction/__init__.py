"""How pleased a reply is: the scorer, the reward follower, replay, augmentation and rescoring.

What is heavy (PyTorch) is imported by the modules themselves: `palate.satisfaction.scorer` and so on.
"""
