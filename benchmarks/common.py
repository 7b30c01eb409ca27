"""What several of the scripts share: runs and their files, scalings, wrong labels, small validation lists, tables
with versions."""
from pathlib import Path
import numpy as np, pandas as pd
from ols_fastai.calibration.metrics import nll, summary_metrics
from ols_fastai.calibration.temperature import apply_temperature, fit_temperature
from ols_fastai.calibration.temperature import entropy_temperature, fit_entropy_temperature
from ols_fastai.compare.results import run_file
from ols_fastai.core import load_tensors, with_versions, write_csv
from ols_fastai.data.datasets import atlas_files, load_volume, region_voxels
from ols_fastai.data.splits import sample_per_class

here = Path(__file__).parent
runs = here/'runs'  # trained networks; not committed
seeds = 5

# ---- runs

def load_run(out, method, seed):
    "Tensors and info of a run in the folder of a comparison"
    return load_tensors(run_file(out, 'runs', method, seed))

def valid_nll(tensors): return nll(tensors['valid_preds'], tensors['valid_targs'])

def tuned(out, seed, grid):
    "The one of some settings that has the least NLL, as trained, on the validation images"
    return min(grid, key=lambda method: valid_nll(load_run(out, method, seed)[0]))

def scalings(tensors, entropy=False):
    """Name, T and test predictions: as trained, after one temperature and, if asked for, after one by entropy.

    Without a prior: what is committed was made so"""
    valid,test = (tensors['valid_preds'],tensors['valid_targs']),tensors['preds']
    T = fit_temperature(*valid, prior=None)
    yield 'none',1.,test
    yield 'temperature',T,apply_temperature(test, T)
    if not entropy: return
    each = entropy_temperature(test, *fit_entropy_temperature(*valid, prior=None))
    yield 'entropy',each.mean().item(),apply_temperature(test, each)

def scaled_rows(tensors, entropy=False):
    "For each of `scalings` its name, `T` and the measures on the test images"
    for scaled,T,preds in scalings(tensors, entropy):
        yield dict(scaled=scaled, T=T, **summary_metrics(preds, tensors['targs']))

# ---- tables

def write_table(df, name, folder=here):
    "Write a table beside the scripts, with a column of versions"
    write_csv(with_versions(df), folder/name)

# ---- lists of images

def small_mednist_valid(src, fn, n=20):
    "Write MedNIST's validation list with `n` images a class: who has 60 images to train on has no 600 to validate on"
    fn.parent.mkdir(parents=True, exist_ok=True)
    write_csv(sample_per_class(pd.read_csv(src/'mednist_val.csv'), n, 0), fn)
    return fn

def _drawn(df, share, rng): return rng.choice(len(df), round(share*len(df)), replace=False)

def wrong_labels(df, share, seed=0):
    "A copy of a table in which `share` of the labels are another class, drawn at random"
    df,rng = df.copy(),np.random.default_rng(seed)
    classes = np.array(sorted(df.label.unique()))
    rows = _drawn(df, share, rng)
    old = np.searchsorted(classes, df.label.to_numpy()[rows])
    df.loc[df.index[rows],'label'] = classes[(old+rng.integers(1, len(classes), len(rows)))%len(classes)]
    return df

def noisy(src, dst, share, seed=0):
    "A copy of a list in which `share` of the labels are another class, drawn at random"
    write_csv(wrong_labels(pd.read_csv(src), share, seed), dst)

def wrong_neighbours(df, share, seed=0):
    "A copy of BrainRegions' table in which `share` of the labels are a region that touches the right one, at random"
    regions,vol,_ = left_atlas()
    touch = borders(vol, len(regions))>0
    df,rng = df.copy(),np.random.default_rng(seed)
    rows = _drawn(df, share, rng)
    names = [regions[rng.choice(np.flatnonzero(touch[regions.index(o)]))] for o in df.label.iloc[rows]]
    df.loc[df.index[rows],'label'] = names
    return df

def neighbours(src, dst, share, seed=0):
    "A copy of a list with `wrong_neighbours`"
    write_csv(wrong_neighbours(pd.read_csv(src), share, seed), dst)

# ---- the atlas

def left_atlas():
    """The regions of BrainRegions, sorted as its vocab is, the atlas's voxels as indices into them (X,Y,Z), its affine.

    -1 for whatever is no region of the left side"""
    regions = sorted(region_voxels())
    vol,affine = load_volume(atlas_files()/'atlases/atlas_aal.nii.gz')
    index = pd.read_csv(atlas_files()/'atlases/labels_aal.csv').set_index('name')['index']
    lut = np.full(int(vol.max())+1, -1)
    lut[[index[o+'_L'] for o in regions]] = range(len(regions))
    return regions,lut[vol.astype(int)],affine

def borders(vol, K):
    "Faces of voxels at which two regions touch (K,K)"
    n = np.zeros((K,K), dtype=int)
    for axis in range(3):
        v = np.moveaxis(vol, axis, 0)
        a,b = v[:-1].ravel(),v[1:].ravel()
        m = (a>=0) & (b>=0) & (a!=b)
        np.add.at(n, (a[m],b[m]), 1)
    return n+n.T
