"""Images per second from files on disk to a normalised, augmented batch on a CPU: ours, fastai's default, torchvision's, and the limit.

    python benchmarks/image_speed.py        # 15 minutes beside other programs; writes benchmarks/image_speed.csv, a row as soon as it is measured

Files are made up (smooth shapes and noise), of 224 and 512 pixels, PNG and JPEG, grey and in colour; batches of 64 at 224 x 224, mirrored at random. One epoch is one measurement, the start of its worker processes included.
The ways take turns, and ratios are taken within a turn; medians over the turns. On a machine that others use too the CPU seconds of all processes are the steadier measure; both are written down.
`limit` is `cv2.imread` and `cv2.resize` with the interpolation that ours takes, in as many processes, and nothing else: no batch, no floats.
"""
import csv, multiprocessing, resource, statistics, tempfile, time
from pathlib import Path
import cv2, numpy as np, PIL, torch, torchvision
from torchvision.transforms import v2
from fastai.vision.all import CategoryBlock, DataBlock, Flip, ImageBlock, Normalize, Resize, imagenet_stats, parent_label
from ols_fastai.core import package_versions
from ols_fastai.data.images import CVImageBlock, CVResize, _one_cv_thread

size,bs,n_files,n_images,rounds = 224,64,32,256,3
flags = cv2.IMREAD_ANYDEPTH|cv2.IMREAD_ANYCOLOR

def make_files(path, side, ext, colour):
    "As hard to pack as a photograph or a scan: shapes of all sizes, and noise"
    rng,fns = np.random.default_rng(0),[]
    for i in range(n_files):
        a = sum(cv2.resize(rng.normal(0, s, (k,k,3)).astype(np.float32), (side,side), interpolation=cv2.INTER_CUBIC) for k,s in ((4,50),(16,25),(64,10),(side,3)))
        a = np.clip(a+110, 0, 255).astype(np.uint8)
        fn = path/f'class{i%2}'/f'{i}.{ext}'
        fn.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(fn), a if colour else a[...,0])
        fns.append(fn)
    return fns*(n_images//n_files)

def fastai_dls(block, fns, workers, **kwargs):
    db = DataBlock((block,CategoryBlock), get_items=lambda _: fns, get_y=parent_label, splitter=lambda o: (list(range(len(o))),[0]), **kwargs)
    return db.dataloaders(fns[0].parent.parent, bs=bs, num_workers=workers, device='cpu').train

class Files(torch.utils.data.Dataset):
    "torchvision's ImageFolder with a list of files"
    def __init__(self, fns):
        self.fns = [(str(o),int(o.parent.name=='class1')) for o in fns]
        self.tfm = v2.Compose([v2.Resize((size,size)), v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([.5]*3, [.5]*3)])
    def __len__(self): return len(self.fns)
    def __getitem__(self, i):
        fn,y = self.fns[i]
        return self.tfm(torchvision.datasets.folder.default_loader(fn)),y

def bare(fns):
    for fn in fns: cv2.resize(cv2.imread(str(fn), flags), (size,size), interpolation=cv2.INTER_AREA)

def limit(fns, workers):
    if not workers: return bare(fns)
    with multiprocessing.get_context('fork').Pool(workers, _one_cv_thread) as pool:
        pool.map(bare, [fns[i:i+bs] for i in range(0, len(fns), bs)], chunksize=1)
        pool.close(); pool.join()

def epoch(dl):
    n = 0
    for x,_ in dl:
        assert x.shape[1:]==(3,size,size) and x.dtype==torch.float32
        n += len(x)
    assert n>=n_images-bs

def cpu(): return sum(o.ru_utime+o.ru_stime for o in map(resource.getrusage, (resource.RUSAGE_SELF,resource.RUSAGE_CHILDREN)))

def measure(fns, side, ext, workers):
    "{way: [(seconds, CPU seconds)]} of an image, over the turns"
    dls = {'ours': fastai_dls(CVImageBlock(), fns, workers, item_tfms=CVResize(size, flip=True)),
           'fastai': fastai_dls(ImageBlock, fns, workers, item_tfms=Resize(size), batch_tfms=[Flip(), Normalize.from_stats(*imagenet_stats)]),
           'torchvision': torch.utils.data.DataLoader(Files(fns), batch_size=bs, shuffle=True, drop_last=True, num_workers=workers)}
    if ext=='jpg' and side>=2*size: dls['ours, min_side'] = fastai_dls(CVImageBlock(min_side=size), fns, workers, item_tfms=CVResize(size, flip=True))
    ways = {'limit': lambda: limit(fns, workers), **{k: lambda o=o: epoch(o) for k,o in dls.items()}}
    times = {k: [] for k in ways}
    for turn in range(rounds+1):
        for k,f in ways.items():
            start,c = time.perf_counter(),cpu()
            f()
            if turn: times[k].append(((time.perf_counter()-start)/n_images, (cpu()-c)/n_images))  # the first turn warms up
    return times

def main():
    cv2.setNumThreads(0); torch.set_num_threads(1)
    out = Path(__file__).with_suffix('.csv')
    v = {**package_versions(), 'cv2': cv2.__version__, 'PIL': PIL.__version__, 'torchvision': torchvision.__version__}
    fields = ['source','format','channels','workers','way','images_per_s','cpu_ms','of_limit','of_limit_cpu','over_fastai','over_fastai_cpu','rounds','versions']
    with out.open('w', newline='') as f, tempfile.TemporaryDirectory() as tmp:
        w = csv.DictWriter(f, fields); w.writeheader()
        files = {(channels,side,ext): make_files(Path(tmp)/f'{side}{ext}{channels}', side, ext, channels==3) for channels in (1,3) for side in (224,512) for ext in ('png','jpg')}
        for channels in (1,3):
            for workers in (0,2):
                for side in (224,512):
                    for ext in ('png','jpg'):
                        times = measure(files[channels,side,ext], side, ext, workers)
                        ratio = lambda a, b, i: round(statistics.median(x[i]/y[i] for x,y in zip(times[a], times[b])), 3)
                        for k,o in times.items():
                            row = dict(source=side, format=ext, channels=channels, workers=workers, way=k, images_per_s=round(1/statistics.median(x for x,_ in o), 1), cpu_ms=round(1000*statistics.median(c for _,c in o), 4),
                                       of_limit=ratio('limit', k, 0), of_limit_cpu=ratio('limit', k, 1), over_fastai=ratio('fastai', k, 0), over_fastai_cpu=ratio('fastai', k, 1), rounds=rounds, versions=v)
                            w.writerow(row); f.flush()
                            print({k: o for k,o in row.items() if k!='versions'}, flush=True)

if __name__=='__main__': main()
