"Tiny learners that train in a blink."
import random
import matplotlib.pyplot as plt
import pytest, torch
from torch import nn
from torch.utils.data import TensorDataset
from fastai.basics import *
from fastai.callback.progress import ProgressCallback
from fastai.losses import CrossEntropyLossFlat

K = 6

def toy_data(n=240, K=K, seed=0, noise=.3):
    "`n` points around `K` places on a circle, and which place"
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, K, (n,), generator=g)
    a = 2*math.pi*y/K
    return torch.stack([a.cos(), a.sin()], 1) + noise*torch.randn(n, 2, generator=g), y

def toy_model(K=K, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2,16), nn.ReLU(), nn.Linear(16,K))

def toy_learner(K=K, n=240, bs=40, shuffle=True, seed=0, data=None, model=None, valid=None, device='cpu', **kwargs):
    "A learner on `toy_data`, quiet, whose batches are settled by `seed`"
    random.seed(seed)
    train = TensorDataset(*(data or toy_data(n, K)))
    valid = TensorDataset(*(valid or toy_data(60, K, seed=1)))
    dls = DataLoaders(DataLoader(train, bs=bs, shuffle=shuffle, drop_last=shuffle, num_workers=0), DataLoader(valid, bs=bs, num_workers=0), device=device)
    learn = Learner(dls, model or toy_model(K), **{**dict(loss_func=CrossEntropyLossFlat(), opt_func=SGD, lr=.1), **kwargs})
    learn.logger,learn.create_mbar = noop,False
    learn.remove_cb(ProgressCallback)
    return learn

def weights(learn): return torch.cat([o.detach().flatten() for o in learn.model.parameters()])

@pytest.fixture(autouse=True)
def seeded():
    with no_random(0): yield

@pytest.fixture(autouse=True)
def _no_figures_for_the_next_test():
    yield
    plt.close('all')
