"""A network trained on the targets T = alpha*I + (1-alpha)*S learns, at its best, p = pi T, with pi the true
posterior. Does taking T out again calibrate it?

    python benchmarks/unmix.py FOLDER...  # folders of comparisons with runs of OLS at alpha 0.5; writes unmix.csv

'em n': n steps of expectation maximisation for pi on the simplex; 'inverse': p T^-1, what is below 1e-4 raised to
it."""
import sys
from functools import partial
from pathlib import Path
import pandas as pd, torch
from common import scaled_rows, write_table
from ols_fastai.core import load_tensors

def em(p, T, n):
    pi = p
    for _ in range(n):
        pi = pi*((p/(pi@T).clamp(min=1e-30))@T.T)
        pi = pi/pi.sum(1, keepdim=True)
    return pi

def inverse(p, T):
    pi = (p@torch.linalg.inv(T)).clamp(min=1e-4)
    return pi/pi.sum(1, keepdim=True)

ways = {'as it is': lambda p, T: p, **{f'em {n}': partial(em, n=n) for n in (1,2,5,50)}, 'inverse': inverse}

def rows(data, tensors, info):
    T = .5*(torch.eye(len(tensors['S']), dtype=torch.float64)+tensors['S'].double())
    for name,f in ways.items():
        taken_out = {o: f(tensors[o].double(), T) for o in ('valid_preds','preds')}
        for row in scaled_rows({**tensors, **taken_out}):
            del row['T']
            yield dict(data=data, way=name, scaled=row.pop('scaled'), seed=info['seed'], **row)

def main(folders):
    out = []
    for folder in map(Path, folders):
        for fn in sorted((folder/'runs').glob('ols*.safetensors')):
            tensors,info = load_tensors(fn)
            if info['method'] in ('ols','ols:alpha=0.5'): out += rows(folder.name, tensors, info)
    df = pd.DataFrame(out)
    write_table(df, 'unmix.csv')
    shown = ['Top-1 error %','Top-5 error %','NLL','ECE (15 bins)']
    print(df.groupby(['data','way','scaled'], sort=False)[shown].mean().round(4).to_string())

if __name__=='__main__': main(sys.argv[1:])
