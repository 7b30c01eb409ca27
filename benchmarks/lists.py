"""From the CSVs of 1.35 million images to ready DataLoaders: seconds and memory, against fastai's
`ImageDataLoaders.from_df`.

    python benchmarks/lists.py [FOLDER]      # 10 minutes; writes benchmarks/lists.csv

The list is made up: 165 classes with a long tail in RadImageNet's folders. Its files are hard links to 1,000 small
PNGs, so that each name is there and the first batch can be read. They are kept in FOLDER if that is given, and used
again. Each way runs in a process of its own, in turns, `n_rounds` times; the lowest seconds and the highest memory
are kept:

- ready: from the CSVs to DataLoaders, without the imports; by the clock, and seconds of the CPU, which other processes
  on the machine do not disturb
- memory: what the process has in RAM, of which `imports_MB` are torch, fastai and pandas before anything is read
- epoch start: until the first batch of a shuffled epoch from two worker processes, which read real files
- per worker: memory that a worker has for itself (USS), the mean of two, when 300 batches of 64 rows have been drawn.
  What an image takes is kept out of it: all rows give the same picture, made once.

"""
import csv, os, re, subprocess, sys, tempfile, time
from pathlib import Path

n_rows,n_files,bs,n_rounds = 1_350_000,1_000,64,1

def class_sizes():
    import numpy as np
    n = np.maximum(20, n_rows*.03*.955**np.arange(165)).astype(int)
    n[0] += n_rows-n.sum()
    return n

def make(path):
    import cv2, numpy as np
    rng = np.random.default_rng(0)
    (path/'files').mkdir(parents=True)
    for i in range(n_files): cv2.imwrite(str(path/f'files/{i}.png'), rng.integers(0, 256, (64,64), dtype=np.uint8))
    i,rows = 0,{o: [] for o in ('train','val','test')}
    for label,m in enumerate(class_sizes()):
        modality,region,name = ('CT','MR','US')[label%3],f'region_{label%11:02}',f'finding_{label:03}'
        folder = '/'.join(['radiology_ai',modality,*([] if modality=='US' else [region]),name])
        (path/folder).mkdir(parents=True)
        split = rng.choice(['train','val','test'], m, p=[.75,.1,.15])
        split[0] = 'train'
        for j in range(m):
            fn = f'{folder}/{modality.lower()}{i:07}_img.png'
            os.link(path/f'files/{i%n_files}.png', path/fn)
            rows[split[j]].append((fn,name))
            i += 1
    for o,r in rows.items():
        with csv_of(path, o).open('w', newline='') as f: csv.writer(f).writerows([('filename','label'),*r])
    (path/'made').touch()

def csv_of(path, split): return path/f'RadiologyAI_{split}.csv'

small = dict(size=64, bs=bs, num_workers=2, device='cpu')

def ours(path, **kwargs):
    from ols_fastai.data.loaders import image_dls
    return image_dls(*(csv_of(path, o) for o in ('train','val','test')), root=path, **small, **kwargs)

def fastais(path):
    import pandas as pd
    from fastai.vision.all import ImageDataLoaders, Resize
    df = pd.concat([pd.read_csv(csv_of(path, o)).assign(is_valid=o=='val') for o in ('train','val')], ignore_index=True)
    columns = dict(fn_col='filename', label_col='label', valid_col='is_valid')
    return ImageDataLoaders.from_df(df, path, **columns, item_tfms=Resize(64), bs=bs, num_workers=2, device='cpu')

def short(path):
    from ols_fastai.data.loaders import image_dls
    from ols_fastai.data.lists import read_lists
    df = read_lists(*(csv_of(path, o) for o in ('train','val')))
    return image_dls(df.groupby('label').head(600), root=path, check_files=False, **small)

def unchecked(path): return ours(path, check_files=False)

ways = {'image_dls': ours, 'image_dls, check_files=False': unchecked,
        'fastai from_df': fastais, 'image_dls of a short list': short}

def rss(): return int(open('/proc/self/statm').read().split()[1])*4096/1e6

def peak(): return int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1])*1024/1e6

def one_picture(dls, path):
    "All rows give the same image, as the library's reader would"
    f,fn = dls.train_ds.tls[0].tfms.fs,path/'files/0.png'
    if hasattr(f[0], 'reads'):
        im = f[0].reads[0](fn)
        f[0].reads = [lambda o: im]
    else:
        from fastai.vision.all import PILImage, Transform
        im = PILImage.create(fn)
        f[-1] = Transform(lambda o: im)

def first_batch(dls):
    "Seconds"
    start = time.perf_counter()
    it = iter(dls.train)
    next(it)
    return time.perf_counter()-start

def per_worker(dls):
    "Memory of its own of a worker process, in MB"
    import psutil
    it = iter(dls.train)
    for _ in range(300): next(it)
    sizes = [o.memory_full_info().uss/1e6 for o in psutil.Process().children()]
    return sum(o for o in sizes if o>1)/2

def run(way, path):
    "Print all figures of one way"
    import ols_fastai.data.loaders  # noqa: F401 with torch, fastai and pandas, before anything is measured
    imports = rss()
    Path('/proc/self/clear_refs').write_text('5')   # forgets the peak of the imports
    start,cpu = time.perf_counter(),time.process_time()
    dls = ways[way](path)
    ready,cpu = time.perf_counter()-start,time.process_time()-cpu
    now,most,first = rss(),peak(),first_batch(dls)
    one_picture(dls, path)
    print('RESULT', len(dls.train_ds), imports, ready, cpu, now, most, first, per_worker(dls), flush=True)
    os._exit(0)

def measured(way, path):
    "What `run` prints, of a process of its own"
    command = [sys.executable, '-W', 'ignore', __file__, 'run', way, str(path)]
    r = subprocess.run(command, capture_output=True, text=True)
    if 'RESULT' not in r.stdout: sys.exit(r.stdout+r.stderr)
    found = [float(o) for o in r.stdout.split('RESULT')[1].split()]
    print(way, found, flush=True)
    return found

def row(way, found):
    n,imports,ready,cpu,now,most,first,uss = zip(*found)
    return dict(way=way, train_rows=int(n[0]), ready_s=round(min(ready), 2), ready_s_highest=round(max(ready), 2),
                ready_cpu_s=round(min(cpu), 2), imports_MB=round(max(imports)), ready_MB=round(max(now)),
                peak_MB=round(max(most)), epoch_start_s=round(min(first), 2), per_worker_MB=round(max(uss)))

def main(path):
    import pandas as pd
    from common import write_table
    if not (path/'made').exists(): make(path)
    found = {o: [] for o in ways}
    for _ in range(n_rounds):
        for way in ways: found[way].append(measured(way, path))
    write_table(pd.DataFrame([row(*o) for o in found.items()]), 'lists.csv')

if __name__=='__main__':
    if sys.argv[1:2]==['run']: run(sys.argv[2], Path(sys.argv[3]))
    elif len(sys.argv)>1: main(Path(sys.argv[1]).absolute())
    else:
        with tempfile.TemporaryDirectory() as tmp: main(Path(tmp)/'list')
