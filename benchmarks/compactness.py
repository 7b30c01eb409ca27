"""Fig. 2 of the paper at a size that a CPU can run: how tight the classes lie in the features before the last layer, after training with each of the four methods.

    OMP_NUM_THREADS=1 python benchmarks/compactness.py run ../shared/data/mednist     # 40 minutes; goes on where it was stopped, and takes the runs of paper.py where they are there
    OMP_NUM_THREADS=1 python benchmarks/compactness.py table ../shared/data/mednist   # 2 minutes; of the seeds that are complete

Networks, data, settings and seeds are those of paper.py, each method at its defaults. The features are those of all test images, none of which was trained on.
Writes compactness.csv, a row a network, method and seed: the measures of `feature_stats`, and the Top-1 error. And compactness_tsne.csv, maps of one network and seed: t-SNE of some of the images,
each method by itself. Of many classes the map takes eight, evenly from the sorted names, so that nobody chose them."""
import sys
from pathlib import Path
import numpy as np, pandas as pd
from fastai.basics import Learner, noop
from fastai.callback.progress import ProgressCallback
from ols_fastai.core import load_tensors, write_csv
from ols_fastai.data.loaders import image_dls
from ols_fastai.compare.comparison import compare
from ols_fastai.core import package_versions
from ols_fastai.calibration.features import feature_stats, penultimate_features
from ols_fastai.train.models import create_model
from paper import default, folder, nets, regimes, seeds
from sklearn.manifold import TSNE

here = Path(__file__).parent
shown = dict(arch='small_vgg', seed=0)  # the network that errs least, on both data sets
n_classes,n_images = 8,25               # on the map, at most; images a class

def run(mednist, *archs):
    for n in range(1, seeds+1):  # seed by seed, so that what is there at any time is a whole comparison of fewer seeds
        for data,args in regimes(mednist).items():
            for arch in archs or nets: compare(**args, arch=arch, out=folder(data, arch), methods=list(default.values()), seeds=n)

def file(data, arch, spec, seed, kind='runs'): return folder(data, arch)/kind/f"{spec.replace(':', '_')}-{seed}.safetensors"

def complete(datas):
    "Seeds that every network and method has, on every data set"
    return [seed for seed in range(seeds) if all(file(data, arch, spec, seed).exists() for data in datas for arch in nets for spec in default.values())]

def features(dls, data, arch, spec, seed):
    "Features of the test images (N,D), true classes (N,), and the Top-1 error in per cent as `compare` measured it. Raises `ValueError` if the network is not the one that was measured"
    t,info = load_tensors(file(data, arch, spec, seed))
    if list(dls.vocab)!=info['vocab']: raise ValueError(f"{file(data, arch, spec, seed)} was trained on other classes")
    learn = Learner(dls, create_model(arch, len(dls.vocab)))
    learn.remove_cb(ProgressCallback); learn.logger,learn.create_mbar = noop,False
    learn.model.load_state_dict(load_tensors(file(data, arch, spec, seed, 'models'))[0])
    x,y,head = penultimate_features(learn, ds_idx=2)
    far = (head(x).softmax(1)-t['preds']).abs().max().item()
    if far>1e-4 or not y.equal(t['targs']): raise ValueError(f"{file(data, arch, spec, seed, 'models')}: the predictions are not those of the run, they differ by up to {far:.2g}")
    return x.numpy(), y.numpy(), 100*(t['preds'].argmax(1)!=t['targs']).double().mean().item()

def drawn(y, n_classes=n_classes, n_images=n_images):
    "Index of the images on the map: the first of each of some classes, evenly from all"
    K = int(y.max())+1
    classes = range(K) if K<=n_classes else np.arange(n_classes)*K//n_classes
    return np.concatenate([np.flatnonzero(y==o)[:n_images] for o in classes])

def tsne(x):
    "Places on the map (N,2), as `plot_tsne` makes them"
    return TSNE(perplexity=min(30, (len(x)-1)/3), init='pca', random_state=0).fit_transform(x.astype(np.float32))

def measured(x, y, vocab, row, on_map=False):
    "A row of compactness.csv, and a list of rows of compactness_tsne.csv"
    if not on_map: return dict(row, **feature_stats(x, y)),[]
    i = drawn(y)
    places = tsne(x[i]).round(2)
    keys = {k: row[k] for k in ('data','arch','method','seed')}
    return dict(row, **feature_stats(x, y)),[dict(keys, label=vocab[k], x=a, y=b) for k,(a,b) in zip(y[i], places)]

def table(mednist):
    all_args,rows,places = regimes(mednist),[],[]
    for data,args in all_args.items():
        dls = image_dls(args['train'], args['valid'], args['test'], root=args.get('root', Path(args['train']).parent), size=args['size'], bs=args.get('bs', 64), num_workers=0)
        for seed in complete(all_args):
            for arch in nets:
                for method,spec in default.items():
                    x,y,error = features(dls, data, arch, spec, seed)
                    row,points = measured(x, y, dls.vocab, {'data':data, 'arch':arch, 'method':method, 'spec':spec, 'seed':seed, 'Top-1 error %':error}, dict(arch=arch, seed=seed)==shown)
                    rows.append(row); places += points
    return [pd.DataFrame(o).assign(versions=str(package_versions())) for o in (rows,places)]

if __name__=='__main__':
    if sys.argv[1]=='run': run(*sys.argv[2:])
    else:
        df,places = table(sys.argv[2])
        write_csv(df, here/'compactness.csv')
        write_csv(places, here/'compactness_tsne.csv')
        print(df.groupby(['data','arch','method'], sort=False)[['Top-1 error %','silhouette','intra/inter','NC1']].mean().round(3).to_string())
