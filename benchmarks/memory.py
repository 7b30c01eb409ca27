"""What soft labels take with very many classes, and what `top_k` costs in accuracy of the loss.

    python benchmarks/memory.py        # 3 minutes; writes benchmarks/memory.csv and benchmarks/top_k.csv

Memory: 6 batches of 64 are trained on with 21,841 classes in a process of its own for each way; the peak of its
resident memory, minus that of the same training without OLS. Loss error: BrainRegions' soft labels and test
predictions from `make demo` (demo/ has to be there), with `top_k` entries a row against whole rows.
"""
import resource, subprocess, sys
from pathlib import Path

here = Path(__file__).parent
K = 21_841  # as ImageNet-22k

def train(way):
    "Print the peak of this process's resident memory, and what the soft labels hold, in GiB"
    import torch
    from torch.utils.data import TensorDataset
    from fastai.basics import DataLoader, DataLoaders, Learner, SGD, nn
    from fastai.losses import CrossEntropyLossFlat
    from ols_fastai.core import quiet_learner
    from ols_fastai.train.ols import OLSCallback
    ds = TensorDataset(torch.randn(6*64, 32), torch.randint(0, K, (6*64,)))
    dls = DataLoaders(*(DataLoader(ds, bs=64, num_workers=0) for _ in range(2)), device='cpu')
    learn = Learner(dls, nn.Linear(32, K), loss_func=CrossEntropyLossFlat(), opt_func=SGD)
    top_k = None if way=='whole rows' else way.split()[-1]
    cb = None if way=='none' else OLSCallback(top_k=top_k and int(top_k))
    with quiet_learner(learn): learn.fit(2, cbs=cb)
    held = 0 if cb is None else sum(o.numel()*o.element_size() for o in cb.labels.buffers())
    print('RESULT', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024**2, held/1024**3)

def write(name, rows):
    import pandas as pd
    from common import write_table
    df = pd.DataFrame(rows)
    write_table(df, name)
    print(df.to_string())

def measured(way):
    "The two figures of `train`, in a process of its own"
    command = [sys.executable, '-W', 'ignore', __file__, way]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [float(o) for o in out.split('RESULT')[1].split()]

def memory():
    found = {way: measured(way) for way in ('none','whole rows','top_k 256','top_k 64')}
    base,rows = found['none'][0],[]
    for way,(peak,held) in found.items():
        figures = dict(peak_GiB=peak, peak_over_none_GiB=peak-base, held_GiB=held)
        rows.append(dict(way=way, K=K, **{k: round(v, 2) for k,v in figures.items()}))
    write('memory.csv', rows)

def loss_error():
    from ols_fastai.core import load_tensors
    from ols_fastai.train.soft_labels import SoftLabels, soft_cross_entropy
    t,_ = load_tensors(here.parent/'demo/runs/ols-0.safetensors')
    logp,y,S = t['preds'].clamp(min=1e-30).log(),t['targs'],t['S']
    full,rows,n = soft_cross_entropy(logp, S[y], reduction='none'),[],len(S)
    spread = logp.max(1).values-logp.min(1).values
    for k in (2,4,8,16,32):
        labels = SoftLabels(n, top_k=k)
        labels._store(S)
        error = (soft_cross_entropy(logp, labels.rows(y), reduction='none')-full).abs()
        bound = labels.tail[y,0]*(n-k)*spread
        figures = dict(mass_in_tail=(labels.tail*(n-k)).mean(), mean_loss=full.mean(), mean_error=error.mean(),
                       largest_error=error.max(), mean_bound=bound.mean())
        rounded = {name: round(o.item(), 4) for name,o in figures.items()}
        rows.append(dict(K=n, top_k=k, **rounded, beyond_bound=int((error>bound+1e-5).sum())))
    write('top_k.csv', rows)

if __name__=='__main__':
    if len(sys.argv)>1: train(sys.argv[1])
    else:
        memory()
        loss_error()
