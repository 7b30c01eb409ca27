"""Fig. 2 of the paper at a size that a CPU can run: how tight the classes lie in the features before the last layer,
after training with each of the four methods.

    OMP_NUM_THREADS=1 python benchmarks/compactness.py run ../shared/data/mednist  # 40 minutes; goes on where stopped
    OMP_NUM_THREADS=1 python benchmarks/compactness.py table ../shared/data/mednist  # 2 minutes; of whole seeds

Networks, data, settings, seeds and runs are those of paper.py, each method at its defaults. The features are those
of all test images, none of which was trained on. Writes compactness.csv, a row a network, method and seed: the
measures of `feature_stats`, and the Top-1 error. And compactness_tsne.csv, maps of one network and seed: t-SNE of
some of the images, each method by itself. Of many classes the map takes eight, evenly from the sorted names, so that
nobody chose them."""
import itertools, sys
from pathlib import Path
import numpy as np, pandas as pd
from fastai.basics import Learner
from sklearn.manifold import TSNE
from common import load_run, seeds, write_table
from ols_fastai.calibration.features import feature_stats, penultimate_features
from ols_fastai.compare.comparison import compare
from ols_fastai.compare.results import run_file
from ols_fastai.core import load_tensors, quiet_learner
from ols_fastai.data.loaders import image_dls
from ols_fastai.train.models import create_model
from paper import default, folder, left_out, nets, regimes

shown = dict(arch='small_vgg', seed=0)  # the network that errs least, on both data sets
n_classes,n_images = 8,25               # on the map, at most; images a class

def run(mednist, *archs):
    methods = list(default.values())
    for n in range(1, seeds+1):  # seed by seed, so that what is there at any time is a whole comparison of fewer seeds
        for data,args in regimes(mednist).items():
            for arch in archs or nets:
                if (data,arch) in left_out: continue
                compare(**args, arch=arch, out=folder(data, arch), methods=methods, seeds=n)

def complete(datas):
    "Seeds that every network and method has, on every data set"
    every = [o for o in itertools.product(datas, nets, default.values()) if o[:2] not in left_out]
    def files(seed): return [run_file(folder(data, arch), 'runs', spec, seed) for data,arch,spec in every]
    return [seed for seed in range(seeds) if all(o.exists() for o in files(seed))]

def trained(dls, arch, weights):
    "A learner with the weights of a run"
    learn = Learner(dls, create_model(arch, len(dls.vocab)))
    learn.model.load_state_dict(load_tensors(weights)[0])
    return learn

def features(dls, data, arch, spec, seed):
    """Features of the test images (N,D), true classes (N,), and the Top-1 error in per cent as `compare` measured it.

    Raises `ValueError` if the network is not the one that was measured"""
    out = folder(data, arch)
    tensors,info = load_run(out, spec, seed)
    weights = run_file(out, 'models', spec, seed)
    if list(dls.vocab)!=info['vocab']: raise ValueError(f"{weights} was trained on other classes")
    learn = trained(dls, arch, weights)
    with quiet_learner(learn): x,y,head = penultimate_features(learn, ds_idx=2)
    far = (head(x).softmax(1)-tensors['preds']).abs().max().item()
    if far>1e-4 or not y.equal(tensors['targs']):
        raise ValueError(f"{weights}: the predictions are not those of the run, they differ by up to {far:.2g}")
    return x.numpy(), y.numpy(), 100*(tensors['preds'].argmax(1)!=y).double().mean().item()

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
    row = dict(row, **feature_stats(x, y))
    if not on_map: return row,[]
    i = drawn(y)
    places = tsne(x[i]).round(2)
    keys = {k: row[k] for k in ('data','arch','method','seed')}
    return row,[dict(keys, label=vocab[k], x=a, y=b) for k,(a,b) in zip(y[i], places)]

def loaders(args):
    root = args.get('root', Path(args['train']).parent)
    lists = [args[o] for o in ('train','valid','test')]
    return image_dls(*lists, root=root, size=args['size'], bs=args.get('bs', 64), num_workers=0)

def table(mednist):
    all_args,rows,places = regimes(mednist),[],[]
    done = complete(all_args)
    for data,args in all_args.items():
        dls = loaders(args)
        for seed,arch,(method,spec) in itertools.product(done, nets, default.items()):
            if (data,arch) in left_out: continue
            x,y,error = features(dls, data, arch, spec, seed)
            about = {'data':data, 'arch':arch, 'method':method, 'spec':spec, 'seed':seed, 'Top-1 error %':error}
            row,points = measured(x, y, dls.vocab, about, dict(arch=arch, seed=seed)==shown)
            rows.append(row)
            places += points
    return pd.DataFrame(rows),pd.DataFrame(places)

def main(mednist):
    df,places = table(mednist)
    write_table(df, 'compactness.csv')
    write_table(places, 'compactness_tsne.csv')
    shown = ['Top-1 error %','silhouette','intra/inter','NC1']
    print(df.groupby(['data','arch','method'], sort=False)[shown].mean().round(3).to_string())

if __name__=='__main__':
    if sys.argv[1]=='run': run(*sys.argv[2:])
    else: main(sys.argv[2])
