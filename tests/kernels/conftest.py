import torch

# Two test processes that each use all cores would wait for each other most of the time.
torch.set_num_threads(1)
