"""What online label smoothing depends on: wrong labels, images per class, alpha, and how the soft labels are made. A
small study each, on BrainRegions.

    OMP_NUM_THREADS=1 python benchmarks/studies.py run      # an hour and a half; goes on where it was stopped
    python benchmarks/studies.py table  # studies.csv, of the settings that have three seeds or more

small_cnn, 32 px, 40 training images a region, 8 epochs, everything else as `ols_compare` has it. Wrong labels are in
the training list alone: `random20` gives 20 % of the images another region's name at random, `neighbours20` gives
20 % that of a region that touches theirs in the atlas. With other numbers of images a region the epochs change, so that
all networks take the same number of steps. Validation (for the temperature) and test labels are right."""
import sys
import numpy as np, pandas as pd
from common import load_run, neighbours, noisy, scaled_rows, seeds, write_table
from common import runs as all_runs
from ols_fastai.compare.comparison import compare
from ols_fastai.compare.results import run_file
from ols_fastai.data.datasets import brain_regions
from ols_fastai.data.splits import sample_per_class
from ols_fastai.train.methods import METHODS, Method
from ols_fastai.train.ols import OLSCallback

runs = all_runs/'studies'

def every(period=35, momentum=0., fallback='uniform'):
    "OLS with new soft labels every `period` batches"
    return OLSCallback(update_every=period, momentum=momentum, fallback=fallback)

default = 'ols:alpha=0.5'
baselines = {'hard labels':'hard', 'label smoothing':'ls:eps=0.1', 'OLS':default}

def one_setting(name, values, usual):
    "A study of one argument of `ols`"
    return {v: ('right', 40, {'OLS': default if v==usual else f'ols:{name}={v}'}) for v in values}

averaged = {"OLS, fallback 'previous', momentum 0.9": 'ols_every:period=1:momentum=0.9:fallback=previous'}
previous = {"OLS, fallback 'previous'": 'ols_every:period=7:fallback=previous'}
periods = {1:  ('right', 40, {'OLS':'ols_every:period=1', **averaged}),
           7:  ('right', 40, {'OLS':'ols_every:period=7', **previous}),
           35: ('right', 40, {'OLS':default}),  # an epoch
           70: ('right', 40, {'OLS':'ols_every:period=70'})}

# study -> setting -> (labels, images a region, {method: spec}); the order is that in which they run
labels = ('right','random20','neighbours20','random40')
studies = {
    'wrong labels':     {o: (o, 40, {**baselines, 'OLS, all predictions':'ols:correct_only=False'}) for o in labels},
    'images per class': {n: ('right', n, baselines) for n in (40,10,20,80)},
    'momentum':         one_setting('momentum', (0.,.5,.9), 0.),
    'init':             one_setting('init', ('uniform','ls','hard'), 'uniform'),
    'fallback':         one_setting('fallback', ('uniform','previous','hard'), 'uniform'),
    'period':           periods,
    'alpha':            one_setting('alpha', (.1,.3,.5,.7,.9,1.), .5),
}

def train_list(labels):
    "CSV of the training images with right or wrong labels"
    src,dst = brain_regions()/'train.csv',runs/f'{labels}.csv'
    if labels=='right': return src
    wrong = noisy if labels.startswith('random') else neighbours
    if not dst.exists(): wrong(src, dst, int(labels[-2:])/100)
    return dst

def folder(labels, n): return runs/f'{labels}-{n}'

def run(seeds, which=studies):
    runs.mkdir(parents=True, exist_ok=True)
    source = 'this script: the registered `ols` renews once an epoch'
    METHODS['ols_every'] = Method('OLS, new soft labels every so many batches', every, source)
    src = brain_regions()
    regime = dict(valid=src/'valid.csv', test=src/'test.csv', root=src, arch='small_cnn', size=32, num_workers=0)
    for settings in which.values():
        for labels,n,methods in settings.values():
            compare(train=train_list(labels), out=folder(labels, n), methods=list(methods.values()), n_per_class=n,
                    epochs=8*40//n, seeds=seeds, **regime)

def wrong(labels, n, seed):
    "Share of wrong labels among the training images of a run"
    right = pd.read_csv(train_list('right')).set_index('filename').label
    df = sample_per_class(pd.read_csv(train_list(labels)), n, seed)
    return (df.label.to_numpy()!=right[df.filename].to_numpy()).mean()

def rows(study, setting, labels, n, methods):
    "The runs of a setting, of the seeds that are there for all its methods; as trained and after temperature scaling"
    out = folder(labels, n)
    for seed in range(seeds):
        if not all(run_file(out, 'runs', o, seed).exists() for o in methods.values()): continue
        for method,spec in methods.items():
            tensors,info = load_run(out, spec, seed)
            about = dict(study=study, setting=setting, method=method, spec=spec, labels=labels, n_per_class=n,
                         epochs=info['settings']['epochs'], seed=seed, wrong=wrong(labels, n, seed))
            kept = tensors['S'].diagonal().mean().item() if 'S' in tensors else np.nan
            for row in scaled_rows(tensors): yield dict(**about, **row, S_diagonal=kept)

def table():
    df = pd.DataFrame([r for study,settings in studies.items() for k,v in settings.items() for r in rows(study, k, *v)])
    # settings with three seeds or more; of a study's settings, the seeds that all have; no study of a single setting
    df = df[df.groupby(['study','setting']).seed.transform('nunique')>=3]
    settings = df.groupby('study').setting.transform('nunique')
    return df[(df.groupby(['study','seed']).setting.transform('nunique')==settings) & (settings>1)]

def main():
    df = table()
    write_table(df, 'studies.csv')
    shown = ['Top-1 error %','Top-5 error %','NLL','ECE (15 bins)','mean confidence','T']
    print(df.groupby(['study','setting','method','scaled'], sort=False)[shown].mean().round(3).to_string())

if __name__=='__main__':
    if sys.argv[1]=='run':
        run(seeds, {'alpha': studies['alpha']})  # anatomy.py reads these
        for n in (3,5): run(n)                   # whole studies of three seeds first
    else: main()
