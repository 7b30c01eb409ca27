"""What OLSCallback adds to a training step, and its update against two other ways to write it.

    python benchmarks/step_cost.py        # 3 minutes; writes benchmarks/step_cost.csv

Ratios within one run, medians over 15 alternating rounds. Peers are written here from their description: `loop` goes
over the samples of a batch one by one; `columns` selects the correct samples with a mask and adds their
probabilities with index_add_ to the columns of the accumulator.
"""
import statistics, time
import pandas as pd, torch, torch.nn.functional as F
from torch.utils.data import TensorDataset
from fastai.basics import *
from fastai.losses import CrossEntropyLossFlat
from common import write_table
from ols_fastai.core import quiet_learner
from ols_fastai.train.models import create_model
from ols_fastai.train.ols import OLSCallback
from ols_fastai.train.soft_labels import SoftLabels, soft_cross_entropy

rounds = 15

def seconds(f, n):
    start = time.perf_counter()
    for _ in range(n): f()
    return (time.perf_counter()-start)/n

def alternate(fs, n):
    "Median seconds a call of each of `fs`, measured in turns"
    for f in fs.values(): f()
    times = {k: [] for k in fs}
    for _ in range(rounds):
        for k,f in fs.items(): times[k].append(seconds(f, n))
    return {k: statistics.median(v) for k,v in times.items()}, times

class Timed(OLSCallback):
    "Adds up what its events take; the soft term's part of the backward pass is not in it"
    spent = 0.
    def __call__(self, event_name):
        start = time.perf_counter()
        super().__call__(event_name)
        type(self).spent += time.perf_counter()-start

def random_images(K, n, bs):
    "Loaders of `n` batches at 32 px"
    x,y = torch.randn(n*bs, 3, 32, 32),torch.randint(0, K, (n*bs,))
    train,valid = TensorDataset(x, y),TensorDataset(x[:bs], y[:bs])
    return DataLoaders(*(DataLoader(o, bs=bs, num_workers=0) for o in (train,valid)), device='cpu')

def steps(arch, K, n_batches, bs=64):
    "Training steps through fastai's loop, with and without the callback; and the callback's events by themselves"
    dls = random_images(K, n_batches, bs)
    def learner():
        learn = Learner(dls, create_model(arch, K), loss_func=CrossEntropyLossFlat(), opt_func=SGD)
        learn._do_epoch_validate = noop
        return learn
    plain,ols,cb = learner(),learner(),Timed(fallback='hard')
    Timed.spent = 0.
    with quiet_learner(plain), quiet_learner(ols):
        median,times = alternate({'plain': lambda: plain.fit(1), 'OLSCallback': lambda: ols.fit(1, cbs=cb)}, 1)
    per_epoch = Timed.spent/(rounds+1)
    median['plain + events'] = median['plain']+per_epoch
    times['plain + events'] = [o+per_epoch for o in times['plain']]
    return {k: v/n_batches for k,v in median.items()}, {k: [o/n_batches for o in v] for k,v in times.items()}

def update_ways(K, bs, device='cpu'):
    "way -> function: the loss with its gradient, and the accumulation, of one batch"
    z0,y = torch.randn(bs, K, device=device)*3,torch.randint(0, K, (bs,), device=device)
    z0[torch.arange(bs),y] += 6       # mostly right, as in training
    S = torch.full((K,K), 1/K, device=device)
    sl,total,count = SoftLabels(K).to(device),torch.zeros(K, K, device=device),torch.zeros(K, device=device)
    def loss(q):
        z = z0.clone().requires_grad_()
        (-(q*F.log_softmax(z, -1)).sum(-1)).mean().backward()
        return z.detach().softmax(-1)
    def ours():
        z = z0.clone().requires_grad_()
        soft_cross_entropy(z, sl.rows(y)).backward()
        sl.accumulate(z.detach().softmax(-1), y)
    def loop():
        p = loss(S[y])
        guess = p.argmax(-1)
        for i in range(bs):
            if guess[i]==y[i]:
                total[:,y[i]] += p[i]
                count[y[i]] += 1
    def columns():
        p = loss(S.t()[y])
        right = p.argmax(-1)==y
        total.index_add_(1, y[right], p[right].t().contiguous())
        count.index_add_(0, y[right], torch.ones_like(y[right], dtype=torch.float))
    return dict(ours=ours, loop=loop, columns=columns)

def updates(K, bs): return alternate(update_ways(K, bs), 3 if K>=10_000 else 30)

def rows(what, K, bs, median, times):
    base = median.get('plain', median.get('ours'))
    for k,v in median.items():
        yield dict(what=what, K=K, batch=bs, way=k, ms=round(1000*v, 4), ratio=round(v/base, 3),
                   lowest_ms=round(1000*min(times[k]), 4), highest_ms=round(1000*max(times[k]), 4))

def main():
    out = []
    for arch,n in (('small_cnn',20),('resnet18',4)):
        for K in (165,1000): out += rows(f'step of {arch}', K, 64, *steps(arch, K, n))
    for K in (100,165,1000,10_000):
        for bs in (64,256): out += rows('update and loss', K, bs, *updates(K, bs))
    df = pd.DataFrame(out)
    write_table(df, 'step_cost.csv')
    print(df.to_string())

if __name__=='__main__': main()
