"""Images per second of `check_images`, against the limit: reading and decoding the same files and doing nothing
else.

    python benchmarks/checks.py        # 5 minutes; writes benchmarks/checks.csv

50,000 grey PNGs of 64 pixels of noise, and 10,000 of 224 pixels (RadImageNet's size) as hard to pack as a scan, no two
alike, that were written just before, so they are in the system's memory and the figures are of the processor's work.
The ways take turns, three times; the fastest counts. The limit is `cv2.imdecode`
of the bytes of each file, in as many threads, in tasks of 64; `bytes only` reads the files without decoding them.
"""
import tempfile, time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
import cv2, numpy as np, pandas as pd
from common import write_table
from image_speed import shapes
from ols_fastai.data.checks import check_images

rounds = 3

def noise(rng): return rng.integers(0, 256, (64,64), dtype=np.uint8)

def scan(rng): return shapes(rng, 224)[...,0]

def make(path, n, draw):
    rng = np.random.default_rng(0)
    for i in range(n):
        (path/f'{i//1000}').mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path/f'{i//1000}/{i}.png'), draw(rng))
    return pd.DataFrame(dict(filename=[f'{i//1000}/{i}.png' for i in range(n)], label='x', split='train'))

def decode(fn):
    with open(fn, 'rb') as f: data = np.frombuffer(f.read(), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_ANYDEPTH|cv2.IMREAD_ANYCOLOR).shape

def read(fn):
    with open(fn, 'rb') as f: return len(f.read())

def each(f, path, names, threads):
    def task(part): return len([f(f'{path}/{o}') for o in part])
    parts = [names[i:i+64] for i in range(0, len(names), 64)]
    with ThreadPoolExecutor(threads) as pool: return sum(pool.map(task, parts))

def ways(df, path):
    "(way, threads) -> function"
    names,out = df.filename.tolist(),{}
    for t in (1,2):
        out['check_images',t] = partial(check_images, df, path, n_workers=t, progress=False)
        out['limit: read and decode',t] = partial(each, decode, path, names, t)
        out['bytes only',t] = partial(each, read, path, names, t)
    return out

def timed(f):
    "Seconds by the clock, and of the processor"
    start,cpu = time.perf_counter(),time.process_time()
    f()
    return time.perf_counter()-start,time.process_time()-cpu

def measure(df, path):
    "The least of all rounds"
    fs = ways(df, path)
    took = {k: [] for k in fs}
    for _ in range(rounds):
        for k,f in fs.items():
            took[k].append(timed(f))
            print(k, took[k][-1], flush=True)
    return {k: [min(x) for x in zip(*o)] for k,o in took.items()}

def rows(size, n, least):
    for (way,threads),(best,cpu) in least.items():
        limit,limit_cpu = least['limit: read and decode',threads]
        yield dict(way=way, threads=threads, size=size, images=n, images_per_s=round(n/best),
                   of_limit=round(limit/best, 3), cpu_us_per_image=round(1e6*cpu/n, 1),
                   cpu_of_limit=round(limit_cpu/cpu, 3))

def main():
    cv2.setNumThreads(0)
    out = []
    with tempfile.TemporaryDirectory() as tmp:
        for size,n,draw in ((64,50_000,noise), (224,10_000,scan)):
            path = Path(tmp)/f'{size}'
            out += rows(size, n, measure(make(path, n, draw), path))
    write_table(pd.DataFrame(out), 'checks.csv')

if __name__=='__main__': main()
