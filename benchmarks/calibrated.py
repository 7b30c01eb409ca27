"""Which OLS is as accurate as OLS and better calibrated than what it has to beat? OLS with its probabilities scaled
on the validation images.

    OMP_NUM_THREADS=1 python benchmarks/calibrated.py mednist ../shared/data/mednist
    OMP_NUM_THREADS=1 python benchmarks/calibrated.py brain

MedNIST's validation list has 20 images a class with their right labels. Label smoothing and OLS get the same budget
of five settings, the best of which on the validation images (least NLL, seed by seed) is called tuned. Runs are kept
in benchmarks/runs/ (not committed), so that the script goes on where it was stopped; the table is
calibrated_<data>.csv."""
import sys
from pathlib import Path
import pandas as pd
from common import load_run, noisy, runs, scaled_rows, seeds, small_mednist_valid, tuned, write_table
from ols_fastai.compare.comparison import compare
from ols_fastai.data.datasets import brain_regions

grid = dict(LS=[f'ls:eps={o}' for o in (.01,.03,.05,.1,.2)], OLS=[f'ols:alpha={o}' for o in (.1,.3,.5,.7,.9)])
suffix = {'none':'', 'temperature':' + TS', 'entropy':' + entropy TS'}

def lists(data, root=None):
    "Arguments of `compare` for the data and the regime"
    if data=='brain':
        src = brain_regions()
        files = {o: src/f'{o}.csv' for o in ('train','valid','test')}
        return dict(**files, arch='small_cnn', size=32, n_per_class=40, epochs=8)
    src = Path(root).resolve()
    valid = small_mednist_valid(src, runs/'mednist_valid.csv')
    train = runs/'mednist_noisy.csv'
    noisy(src/'mednist_train.csv', train, .2)
    regime = dict(arch='small_cnn', size=32, n_per_class=10, epochs=30, bs=20)
    return dict(train=train, valid=valid, test=src/'mednist_test.csv', root=src.parent, **regime)

def chosen(out, seed):
    "Method -> setting, in the order of the table"
    best = {k: tuned(out, seed, v) for k,v in grid.items()}
    return {'hard':'hard', 'LS':'ls:eps=0.1', 'LS tuned':best['LS'], 'OLS':'ols:alpha=0.5', 'OLS tuned':best['OLS']}

def table(out):
    rows = []
    for seed in range(seeds):
        for method,spec in chosen(out, seed).items():
            tensors,_ = load_run(out, spec, seed)
            for row in scaled_rows(tensors, entropy=True):
                name = method+suffix[row.pop('scaled')]
                rows.append(dict(method=name, seed=seed, spec=spec, **row))
    return pd.DataFrame(rows)

def main(data, *root):
    out = runs/data
    compare(**lists(data, *root), out=out, methods=['hard',*grid['OLS'],*grid['LS']], seeds=seeds, num_workers=0)
    df = table(out)
    write_table(df, f'calibrated_{data}.csv')
    print(df.groupby('method', sort=False).mean(numeric_only=True).round(4).to_string())

if __name__=='__main__': main(*sys.argv[1:])
