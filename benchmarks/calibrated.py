"""Which OLS is as accurate as OLS and better calibrated than what it has to beat: alpha='auto', or alpha 0.5 with its probabilities scaled on the validation images?

    python benchmarks/calibrated.py mednist ../shared/data/mednist    # 10 training images a class, 20 % of the labels wrong, 20 right ones to validate
    python benchmarks/calibrated.py brain

Label smoothing and OLS get the same budget of five settings, the best of which on the validation images (least NLL, seed by seed) is called tuned. Runs are kept in
benchmarks/runs/ (not committed), so that the script goes on where it was stopped; the table is calibrated_<data>.csv."""
import sys
from pathlib import Path
import numpy as np, pandas as pd, torch
from ols_fastai.calibration.metrics import summary_metrics, nll
from ols_fastai.core import load_tensors, write_csv
from ols_fastai.data.splits import sample_per_class
from ols_fastai.data.datasets import brain_regions
from ols_fastai.compare.comparison import compare
from ols_fastai.core import package_versions
from ols_fastai.calibration.scaling import apply_temperature, entropy_temperature, fit_entropy_temperature, fit_temperature

here = Path(__file__).parent
tuned = dict(LS=[f'ls:eps={o}' for o in (.01,.03,.05,.1,.2)], OLS=[f'ols:alpha={o}' for o in (.1,.3,.5,.7,.9)])
seeds = 5

def noisy(src, dst, share, seed=0):
    "A copy of a list in which `share` of the labels are another class, drawn at random"
    df,rng = pd.read_csv(src),np.random.default_rng(seed)
    classes = np.array(sorted(df.label.unique()))
    rows = rng.choice(len(df), round(share*len(df)), replace=False)
    old = np.searchsorted(classes, df.label.to_numpy()[rows])
    df.loc[rows,'label'] = classes[(old+rng.integers(1, len(classes), len(rows)))%len(classes)]
    write_csv(df, dst)

def lists(data, root=None):
    "Arguments of `compare` for the data and the regime"
    if data=='brain':
        src = brain_regions()
        return dict(**{o: src/f'{o}.csv' for o in ('train','valid','test')}, arch='small_cnn', size=32, n_per_class=40, epochs=8)
    out = here/'runs'; out.mkdir(exist_ok=True)
    src = Path(root).resolve()
    noisy(src/'mednist_train.csv', out/'mednist_noisy.csv', .2)
    write_csv(sample_per_class(pd.read_csv(src/'mednist_val.csv'), 20, 0), out/'mednist_valid.csv')  # who has 60 images to train on has no 600 to validate on
    return dict(train=out/'mednist_noisy.csv', valid=out/'mednist_valid.csv', test=src/'mednist_test.csv', root=src.parent, arch='small_cnn', size=32, n_per_class=10, epochs=30, bs=20)

def table(out):
    rows = []
    for seed in range(seeds):
        def load(spec): return load_tensors(out/'runs'/f"{spec.replace(':', '_')}-{seed}.safetensors")[0]
        def add(method, spec):
            t = load(spec)
            valid,test = (t['valid_preds'],t['valid_targs']),t['preds']
            for name,T in (('',1.), (' + TS',fit_temperature(*valid)), (' + entropy TS',entropy_temperature(test, *fit_entropy_temperature(*valid)))):
                rows.append(dict(method=method+name, seed=seed, spec=spec, T=float(torch.as_tensor(T).mean()), **summary_metrics(apply_temperature(test, T), t['targs'])))
        best = {k: min(v, key=lambda o: nll(*(load(o)[p] for p in ('valid_preds','valid_targs')))) for k,v in tuned.items()}
        for name,spec in dict(hard='hard', LS='ls:eps=0.1', **{'LS tuned': best['LS']}, OLS='ols:alpha=0.5', **{'OLS tuned': best['OLS'], 'OLS auto': 'ols_auto'}).items():
            add(name, spec)
    return pd.DataFrame(rows).assign(versions=str(package_versions()))

if __name__=='__main__':
    data = sys.argv[1]
    out = here/'runs'/data
    compare(**lists(data, *sys.argv[2:]), out=out, methods=['hard','ols_auto',*tuned['OLS'],*tuned['LS']], seeds=seeds, num_workers=0)
    df = table(out)
    write_csv(df, here/f'calibrated_{data}.csv')
    print(df.groupby('method', sort=False).mean(numeric_only=True).round(4).to_string())
