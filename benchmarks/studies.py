"""What online label smoothing depends on: wrong labels, images per class, alpha, and how the soft labels are made. A small study each, on BrainRegions.

    OMP_NUM_THREADS=1 python benchmarks/studies.py run      # an hour and a half; goes on where it was stopped
    python benchmarks/studies.py table                      # studies.csv, of the settings that have three seeds or more

small_cnn, 32 px, 40 training images a region, 8 epochs, everything else as `ols_compare` has it. Wrong labels are in the training list alone: `random20` gives 20 % of the images
another region's name at random, `neighbours20` gives 20 % that of a region that touches theirs in the atlas. With other numbers of images a region the epochs change, so that all
networks take the same number of steps. Validation (for the temperature) and test labels are right."""
import sys
from pathlib import Path
import numpy as np, pandas as pd
from ols_fastai.calibration.metrics import summary_metrics
from ols_fastai.train.ols import OLSCallback
from ols_fastai.core import load_tensors, write_csv
from ols_fastai.data.splits import sample_per_class
from ols_fastai.data.datasets import brain_regions
from ols_fastai.compare.comparison import compare
from ols_fastai.core import package_versions
from ols_fastai.calibration.scaling import apply_temperature, fit_temperature
from ols_fastai.train.methods import Method, METHODS
from fastai.losses import CrossEntropyLossFlat
from anatomy import borders, left_atlas
from calibrated import noisy

here = Path(__file__).parent
runs = here/'runs/studies'

def _every(period=35, momentum=0., fallback='uniform'): return CrossEntropyLossFlat(),OLSCallback(update_every=period, momentum=momentum, fallback=fallback)

rivals = {'hard labels':'hard', 'label smoothing':'ls:eps=0.1', 'OLS':'ols:alpha=0.5'}
# study -> setting -> (labels, images a region, {method: spec}); the order is that in which they run
studies = {
    'wrong labels':     {o: (o, 40, {**rivals, 'OLS, all predictions':'ols:correct_only=False'}) for o in ('right','random20','neighbours20','random40')},
    'images per class': {n: ('right', n, rivals) for n in (40,10,20,80)},
    'momentum':         {m: ('right', 40, {'OLS': f'ols:momentum={m}' if m else 'ols:alpha=0.5'}) for m in (0.,.5,.9)},
    'init':             {o: ('right', 40, {'OLS': 'ols:alpha=0.5' if o=='uniform' else f'ols:init={o}'}) for o in ('uniform','ls','hard')},
    'fallback':         {o: ('right', 40, {'OLS': 'ols:alpha=0.5' if o=='uniform' else f'ols:fallback={o}'}) for o in ('uniform','previous','hard')},
    'period':           {1:  ('right', 40, {'OLS':'ols_every:period=1', "OLS, fallback 'previous', momentum 0.9":'ols_every:period=1:momentum=0.9:fallback=previous'}),
                         7:  ('right', 40, {'OLS':'ols_every:period=7', "OLS, fallback 'previous'":'ols_every:period=7:fallback=previous'}),
                         35: ('right', 40, {'OLS':'ols:alpha=0.5'}),  # an epoch
                         70: ('right', 40, {'OLS':'ols_every:period=70'})},
    'alpha':            {**{a: ('right', 40, {'OLS': f'ols:alpha={a}'}) for a in (.1,.3,.5,.7,.9)}, 1.: ('right', 40, {'OLS':'ols:alpha=1.0'})},
}

def neighbours(src, dst, share, seed=0):
    "A copy of a list in which `share` of the labels are a region that touches the right one, drawn at random"
    regions,vol,_ = left_atlas()
    touch = borders(vol, len(regions))>0
    df,rng = pd.read_csv(src),np.random.default_rng(seed)
    rows = rng.choice(len(df), round(share*len(df)), replace=False)
    df.loc[rows,'label'] = [regions[rng.choice(np.flatnonzero(touch[regions.index(o)]))] for o in df.label[rows]]
    write_csv(df, dst)

def train_list(labels):
    "CSV of the training images with right or wrong labels"
    src,dst = brain_regions()/'train.csv',runs/f'{labels}.csv'
    if labels=='right': return src
    if not dst.exists(): (noisy if labels.startswith('random') else neighbours)(src, dst, int(labels[-2:])/100)
    return dst

def folder(labels, n): return runs/f'{labels}-{n}'

def run(seeds, which=studies):
    runs.mkdir(parents=True, exist_ok=True)
    METHODS['ols_every'] = Method('OLS, new soft labels every so many batches', _every, 'this script: the registered `ols` renews once an epoch')
    src = brain_regions()
    for settings in which.values():
        for labels,n,methods in settings.values():
            compare(train=train_list(labels), valid=src/'valid.csv', test=src/'test.csv', root=src, out=folder(labels, n), methods=list(methods.values()), arch='small_cnn', size=32,
                    n_per_class=n, epochs=8*40//n, seeds=seeds, num_workers=0)

def wrong(labels, n, seed):
    "Share of wrong labels among the training images of a run"
    right = pd.read_csv(train_list('right')).set_index('filename').label
    df = sample_per_class(pd.read_csv(train_list(labels)), n, seed)
    return (df.label.to_numpy()!=right[df.filename].to_numpy()).mean()

def rows(study, setting, labels, n, methods):
    "The runs of a setting, of the seeds that are there for all its methods; as trained and after temperature scaling"
    def fn(spec, seed): return folder(labels, n)/'runs'/f"{spec.replace(':', '_')}-{seed}.safetensors"
    for seed in range(5):
        if not all(fn(o, seed).exists() for o in methods.values()): continue
        for method,spec in methods.items():
            t,info = load_tensors(fn(spec, seed))
            T = fit_temperature(t['valid_preds'], t['valid_targs'])
            kept = t['S'].diagonal().mean().item() if 'S' in t else np.nan
            for scaled,preds in (('none',t['preds']),('temperature',apply_temperature(t['preds'], T))):
                yield dict(study=study, setting=setting, method=method, spec=spec, labels=labels, n_per_class=n, epochs=info['settings']['epochs'], seed=seed, wrong=wrong(labels, n, seed),
                           scaled=scaled, T=T, **summary_metrics(preds, t['targs']), S_diagonal=kept)

def table():
    df = pd.DataFrame([r for study,settings in studies.items() for k,v in settings.items() for r in rows(study, k, *v)])
    # settings with three seeds or more; of a study's settings, the seeds that all of them have; no study of a single setting
    df = df[df.groupby(['study','setting']).seed.transform('nunique')>=3]
    settings = df.groupby('study').setting.transform('nunique')
    df = df[(df.groupby(['study','seed']).setting.transform('nunique')==settings) & (settings>1)]
    return df.assign(versions=str(package_versions()))

if __name__=='__main__':
    if sys.argv[1]=='run':
        run(5, {'alpha': studies['alpha']})  # anatomy.py reads these
        for n in (3,5): run(n)               # whole studies of three seeds first
    else:
        df = table()
        write_csv(df, here/'studies.csv')
        print(df.groupby(['study','setting','method','scaled'], sort=False)[['Top-1 error %','Top-5 error %','NLL','ECE (15 bins)','mean confidence','T']].mean().round(3).to_string())
