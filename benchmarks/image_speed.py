"""Images per second from files on disk to a normalised, augmented batch on a CPU: ours, fastai's default,
torchvision's, spdl's, MONAI's, and the limit.

    pip install --no-deps monai spdl-core spdl-io
    python benchmarks/image_speed.py  # 20 minutes; writes benchmarks/image_speed.csv

Files are made up (smooth shapes and noise), of 224 and 512 pixels, PNG and JPEG, grey and in colour; batches of 64
at 224 x 224, mirrored at random. One epoch is one measurement, the start of threads and worker processes included;
ways that take less than half a second have an epoch before it that does not count.
`workers` are threads of ours, of `limit` and of spdl, and processes of fastai and torchvision. The ways take turns,
and ratios are taken within a turn; medians over the turns. On a machine that others use too the CPU seconds of all
processes are the steadier measure; both are written down, with the machine's load at the time. `limit` is `cv2.imread`
and `cv2.resize` with the interpolation that ours takes, in as many threads, 16 files a task, and nothing else: no
batch, no floats. `limit, floats` does what a batch on a CPU can't be had without: each image is looked up in a table
of floats, and written to memory that is used again. `ours, 1 channel` is for networks that take grey images as they
are. `ours, a task an image` shows what the hand-over between threads costs. `ours, cache` is a later epoch, whose
images the first has kept; `bytes` copies them from where they lie, in one thread. `spdl` is spdl-core's pipeline as
its documentation has it, a stage for each image; `MONAI` is the first epoch of its CacheDataset, which reads all
images and then makes batches of them.
"""
import itertools, os, resource, statistics, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
import cv2, numpy as np, pandas as pd, PIL, torch, torchvision
from torchvision.transforms import v2
from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, parent_label
from fastai.vision.all import Flip, Normalize, Resize, imagenet_stats
from common import here
from ols_fastai.core import package_versions, write_csv
from ols_fastai.data.loaders import image_dls
from ols_fastai.data.reading import BatchReader

size,bs,n_files,n_images,rounds = 224,64,32,256,5
flags = cv2.IMREAD_ANYDEPTH|cv2.IMREAD_ANYCOLOR

def shapes(rng, side):
    "As hard to pack as a photograph or a scan: shapes of all sizes, and noise"
    def layer(k, s):
        return cv2.resize(rng.normal(0, s, (k,k,3)).astype(np.float32), (side,side), interpolation=cv2.INTER_CUBIC)
    a = sum(layer(k, s) for k,s in ((4,50),(16,25),(64,10),(side,3)))
    return np.clip(a+110, 0, 255).astype(np.uint8)

def make_files(path, side, ext, colour):
    rng,fns = np.random.default_rng(0),[]
    for i in range(n_files):
        a = shapes(rng, side)
        fn = path/f'class{i%2}'/f'{i}.{ext}'
        fn.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(fn), a if colour else a[...,0])
        fns.append(fn)
    return fns*(n_images//n_files)

def fastai_dls(block, fns, workers, **kwargs):
    def splitter(o): return list(range(len(o))),[0]
    db = DataBlock((block,CategoryBlock), get_items=lambda _: fns, get_y=parent_label, splitter=splitter, **kwargs)
    return db.dataloaders(fns[0].parent.parent, bs=bs, num_workers=workers, device='cpu').train

class Files(torch.utils.data.Dataset):
    "torchvision's ImageFolder with a list of files"
    def __init__(self, fns):
        self.fns = [(str(o),int(o.parent.name=='class1')) for o in fns]
        self.tfm = v2.Compose([v2.Resize((size,size)), v2.RandomHorizontalFlip(), v2.ToImage(),
                               v2.ToDtype(torch.float32, scale=True), v2.Normalize([.5]*3, [.5]*3)])
    def __len__(self): return len(self.fns)
    def __getitem__(self, i):
        fn,y = self.fns[i]
        return self.tfm(torchvision.datasets.folder.default_loader(fn)),y

def read_resized(fn): return cv2.resize(cv2.imread(str(fn), flags), (size,size), interpolation=cv2.INTER_AREA)

def bare(fns):
    for fn in fns: read_resized(fn)

def floats(fns):
    table,room = ((np.arange(256)/255-.5)/.5).astype(np.float32),np.empty((3,size,size), np.float32)
    for fn in fns:
        a = read_resized(fn)
        for c,o in enumerate(cv2.split(a)): cv2.LUT(o, table, dst=room[c])
        if a.ndim==2: room[1:] = room[0]

def limit(fns, workers, work=bare):
    if not workers: return work(fns)
    with ThreadPoolExecutor(workers) as pool: list(pool.map(work, [fns[i:i+16] for i in range(0, len(fns), 16)]))

def our_dl(fns, workers, **kwargs):
    root = fns[0].parent.parent
    rows = [(o.relative_to(root).as_posix(),o.parent.name,'train') for o in fns]
    rows += [(*o[:2],'valid') for o in rows[:2]]
    df = pd.DataFrame(rows, columns=['filename','label','split'])
    same = dict(flip=True, bs=bs, num_workers=workers, device='cpu', allow_overlap='file', check_files=False)
    return image_dls(df, root=root, **same, **kwargs).train

def a_task_an_image(dl):
    kept,BatchReader._images_each = BatchReader._images_each,lambda self, n: 1
    try: epoch(dl)
    finally: BatchReader._images_each = kept

def copy_bytes(dl):
    "The images of a cache, byte by byte"
    cache = dl.dataset.items.store.cache
    n = size*size*(3 if cache.records['kind'][0]==2 else 1)
    for i in dl.dataset.items.rows: np.array(cache.images[i,:n])

def collate(images):
    x = torch.from_numpy(np.stack(images))
    x = x.permute(0, 3, 1, 2) if x.ndim==4 else x[:,None].expand(-1, 3, -1, -1)
    return x.float().div_(255).sub_(.5).div_(.5)

def spdl_epoch(fns, workers):
    from spdl.pipeline import PipelineBuilder  # here, for other scripts and tests do without
    builder = PipelineBuilder().add_source(fns).pipe(read_resized, concurrency=max(1, workers)).aggregate(bs)
    pipeline = builder.pipe(collate).add_sink(2).build(num_threads=max(1, workers)+1)
    with pipeline.auto_stop():
        assert sum(len(x) for x in pipeline)==len(fns)

def monai_epoch(fns, workers):
    from monai import data, transforms as t
    steps = [t.LoadImage(image_only=True, ensure_channel_first=True), t.Resize((size,size)),
             t.NormalizeIntensity(subtrahend=127.5, divisor=127.5)]
    if cv2.imread(str(fns[0]), flags).ndim==2: steps.insert(2, t.RepeatChannel(3))
    compose = t.Compose([*steps, t.RandFlip(.5, spatial_axis=1)])
    kept = data.CacheDataset(fns, compose, num_workers=max(1, workers), progress=False)
    assert sum(len(x) for x in data.DataLoader(kept, batch_size=bs, shuffle=True))==len(fns)

def epoch(dl):
    n = 0
    for x,_ in dl:
        assert x.shape[2:]==(size,size) and x.dtype==torch.float32
        n += len(x)
    assert n>=n_images-bs

def cpu():
    "Seconds of this process and of those that it started"
    used = [resource.getrusage(o) for o in (resource.RUSAGE_SELF,resource.RUSAGE_CHILDREN)]
    return sum(o.ru_utime+o.ru_stime for o in used)

def all_ways(fns, side, ext, workers):
    "way -> function that reads all images once"
    fastais = dict(item_tfms=Resize(size), batch_tfms=[Flip(), Normalize.from_stats(*imagenet_stats)])
    plain = dict(batch_size=bs, shuffle=True, drop_last=True, num_workers=workers)
    dls = {'ours': our_dl(fns, workers),
           'ours, 1 channel': our_dl(fns, workers, channels=1),
           'fastai': fastai_dls(ImageBlock, fns, workers, **fastais),
           'torchvision': torch.utils.data.DataLoader(Files(fns), **plain)}
    dls['ours, cache'] = our_dl(fns, workers, cache=fns[0].parent.parent/f'cache{workers}')
    if ext=='jpg' and side>=2*size: dls['ours, min_side'] = our_dl(fns, workers, min_side=size)
    limits = {'limit': partial(limit, fns, workers), 'limit, floats': partial(limit, fns, workers, floats)}
    ways = {**limits, **{k: partial(epoch, o) for k,o in dls.items()}}
    ways['bytes'] = partial(copy_bytes, dls['ours, cache'])
    if workers: ways['ours, a task an image'] = partial(a_task_an_image, dls['ours'])
    ways['spdl'],ways['MONAI'] = partial(spdl_epoch, fns, workers),partial(monai_epoch, fns, workers)
    return ways

slow = ('fastai','torchvision','spdl','MONAI')   # a second and more, of which memory is a small part

def timed(f):
    "Seconds and CPU seconds of an image"
    start,c = time.perf_counter(),cpu()
    f()
    return (time.perf_counter()-start)/n_images,(cpu()-c)/n_images

def measure(fns, side, ext, workers):
    "{way: [(seconds, CPU seconds)]} of an image, over the turns"
    ways = all_ways(fns, side, ext, workers)
    times = {k: [] for k in ways}
    for turn in range(rounds+1):
        for k,f in ways.items():
            if k not in slow: f()   # a virtual machine may have given its memory away meanwhile
            took = timed(f)
            if turn: times[k].append(took)  # the first turn warms up
    return times

def rows(times, **about):
    def ratio(a, b, i): return round(statistics.median(x[i]/y[i] for x,y in zip(times[a], times[b])), 3)
    for k,o in times.items():
        wall,cpus = (statistics.median(x) for x in zip(*o))
        yield dict(**about, way=k, images_per_s=round(1/wall, 1), cpu_ms=round(1000*cpus, 4),
                   of_limit=ratio('limit', k, 0), of_limit_cpu=ratio('limit', k, 1),
                   of_floats=ratio('limit, floats', k, 0), of_floats_cpu=ratio('limit, floats', k, 1),
                   over_fastai=ratio('fastai', k, 0), over_fastai_cpu=ratio('fastai', k, 1),
                   over_ours=ratio('ours', k, 0), over_bytes=ratio('bytes', k, 0), rounds=rounds)

def main():
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    versions = dict(package_versions(), **{o.__name__: o.__version__ for o in (cv2,PIL,torchvision)},
                    **{o: version(o) for o in ('monai','spdl-core')})
    out = []
    with tempfile.TemporaryDirectory() as tmp:
        kinds = list(itertools.product((1,3), (224,512), ('png','jpg')))
        files = {(c,side,ext): make_files(Path(tmp)/f'{side}{ext}{c}', side, ext, c==3) for c,side,ext in kinds}
        for channels,workers,side,ext in itertools.product((1,3), (0,2), (224,512), ('png','jpg')):
            load = os.getloadavg()[0]
            times = measure(files[channels,side,ext], side, ext, workers)
            out += rows(times, source=side, format=ext, channels=channels, workers=workers, load=round(load, 1))
            df = pd.DataFrame(out)
            write_csv(df.assign(versions=str(versions)), here/'image_speed.csv')
            print(df.tail(len(times)).to_string(), flush=True)

if __name__=='__main__': main()
