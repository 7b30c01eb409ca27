"""A network trained on the targets T = alpha*I + (1-alpha)*S learns, at its best, p = pi T, with pi the true posterior. Does taking T out again calibrate it?

    python benchmarks/unmix.py FOLDER...     # of ols_compare's or calibrated.py's, with runs of OLS at alpha 0.5; writes unmix.csv

'em n': n steps of expectation maximisation for pi on the simplex; 'inverse': p T^-1, what is below 1e-4 raised to it."""
import sys
from pathlib import Path
import pandas as pd, torch
from ols_fastai.calibration.metrics import summary_metrics
from ols_fastai.core import load_tensors, write_csv
from ols_fastai.core import package_versions
from ols_fastai.calibration.scaling import apply_temperature, fit_temperature

def em(p, T, n):
    pi = p
    for _ in range(n):
        pi = pi*((p/(pi@T).clamp(min=1e-30))@T.T)
        pi = pi/pi.sum(1, keepdim=True)
    return pi

def inverse(p, T):
    pi = (p@torch.linalg.inv(T)).clamp(min=1e-4)
    return pi/pi.sum(1, keepdim=True)

rows = []
for folder in map(Path, sys.argv[1:]):
    for fn in sorted((folder/'runs').glob('ols*.safetensors')):
        t,info = load_tensors(fn)
        if info['method'] not in ('ols','ols:alpha=0.5'): continue
        T = .5*(torch.eye(len(t['S']), dtype=torch.float64)+t['S'].double())
        ways = {'as it is': lambda p: p, **{f'em {n}': (lambda p, n=n: em(p, T, n)) for n in (1,2,5,50)}, 'inverse': lambda p: inverse(p, T)}
        for name,f in ways.items():
            valid,test = (f(t[o].double()) for o in ('valid_preds','preds'))
            temp = fit_temperature(valid, t['valid_targs'])
            for scaled,p in (('none',test),('temperature',apply_temperature(test, temp))):
                rows.append(dict(data=folder.name, way=name, scaled=scaled, seed=info['seed'], **summary_metrics(p, t['targs'])))
df = pd.DataFrame(rows).assign(versions=str(package_versions()))
write_csv(df, Path(__file__).parent/'unmix.csv')
print(df.groupby(['data','way','scaled'], sort=False)[['Top-1 error %','Top-5 error %','NLL','ECE (15 bins)']].mean().round(4).to_string())
