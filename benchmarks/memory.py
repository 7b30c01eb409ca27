"""What soft labels take with very many classes, and what `top_k` costs in accuracy of the loss.

    python benchmarks/memory.py        # 3 minutes; writes benchmarks/memory.csv and benchmarks/top_k.csv

Memory: 6 batches of 64 are trained on with 21,841 classes in a process of its own for each way; the peak of its resident memory, less that of the same training without OLS.
Loss error: BrainRegions' soft labels and test predictions from `make demo` (demo/ has to be there), with `top_k` entries a row against whole rows.
"""
import csv, resource, subprocess, sys
from pathlib import Path

here = Path(__file__).parent

def train(way):
    import torch
    from torch.utils.data import TensorDataset
    from fastai.basics import DataLoader, DataLoaders, Learner, SGD, nn, noop
    from fastai.callback.progress import ProgressCallback
    from fastai.losses import CrossEntropyLossFlat
    from ols_fastai.train.ols import OLSCallback
    K = 21_841
    ds = TensorDataset(torch.randn(6*64, 32), torch.randint(0, K, (6*64,)))
    learn = Learner(DataLoaders(DataLoader(ds, bs=64, num_workers=0), DataLoader(ds, bs=64, num_workers=0), device='cpu'), nn.Linear(32, K), loss_func=CrossEntropyLossFlat(), opt_func=SGD)
    learn.remove_cb(ProgressCallback); learn.logger,learn.create_mbar = noop,False
    cb = None if way=='none' else OLSCallback(top_k=None if way=='whole rows' else int(way.split()[-1]))
    learn.fit(2, cbs=cb)
    held = 0 if cb is None else sum(o.numel()*o.element_size() for o in cb.labels.buffers())
    print('RESULT', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024**2, held/1024**3)

def write(fn, rows):
    from ols_fastai.core import package_versions
    with (here/fn).open('w', newline='') as f:
        w = csv.DictWriter(f, [*rows[0], 'versions']); w.writeheader()
        for o in rows: w.writerow({**o, 'versions': package_versions()}); print(o)

def memory():
    rows,base = [],None
    for way in ('none','whole rows','top_k 256','top_k 64'):
        out = subprocess.run([sys.executable, '-W', 'ignore', __file__, way], capture_output=True, text=True, check=True).stdout
        peak,held = (float(o) for o in out.split('RESULT')[1].split())
        base = peak if base is None else base
        rows.append(dict(way=way, K=21_841, peak_GiB=round(peak, 2), peak_over_none_GiB=round(peak-base, 2), held_GiB=round(held, 2)))
    write('memory.csv', rows)

def loss_error():
    from ols_fastai.core import load_tensors
    from ols_fastai.train.soft_labels import SoftLabels, soft_cross_entropy
    t,_ = load_tensors(here.parent/'demo/runs/ols-0.safetensors')
    logp,y,S = t['preds'].clamp(min=1e-30).log(),t['targs'],t['S']
    full,rows = soft_cross_entropy(logp, S[y], reduction='none'),[]
    for k in (2,4,8,16,32):
        sl = SoftLabels(len(S), top_k=k)
        sl._store(S)
        error = (soft_cross_entropy(logp, sl.rows(y), reduction='none')-full).abs()
        bound = sl.tail[y,0]*(len(S)-k)*(logp.max(1).values-logp.min(1).values)
        rows.append(dict(K=len(S), top_k=k, mass_in_tail=round((sl.tail*(len(S)-k)).mean().item(), 4), mean_loss=round(full.mean().item(), 4), mean_error=round(error.mean().item(), 4),
                         largest_error=round(error.max().item(), 4), mean_bound=round(bound.mean().item(), 4), beyond_bound=int((error>bound+1e-5).sum())))
    write('top_k.csv', rows)

if __name__=='__main__':
    if len(sys.argv)>1: train(sys.argv[1])
    else: memory(); loss_error()
