"""Images per second of `check_images`, against the limit: reading and decoding the same files and doing nothing else.

    python benchmarks/checks.py        # 5 minutes; writes benchmarks/checks.csv

50,000 grey PNGs of 64 pixels (no two alike) that were written just before, so they are in the system's memory and the figures are of the processor's work. The ways take turns, twice; the faster counts.
The limit is `cv2.imdecode` of the bytes of each file, in as many threads, in tasks of 64; `bytes only` reads the files without decoding them.
"""
import csv, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import cv2, numpy as np, pandas as pd
from ols_fastai.data.checks import check_images

n,size,rounds = 50_000,64,2

def make(path):
    rng = np.random.default_rng(0)
    for i in range(n):
        if i%1000==0: (path/f'{i//1000}').mkdir()
        cv2.imwrite(str(path/f'{i//1000}/{i}.png'), rng.integers(0, 256, (size,size), dtype=np.uint8))
    return pd.DataFrame(dict(filename=[f'{i//1000}/{i}.png' for i in range(n)], label='x', split='train'))

def decode(fn):
    with open(fn, 'rb') as f: return cv2.imdecode(np.frombuffer(f.read(), np.uint8), cv2.IMREAD_ANYDEPTH|cv2.IMREAD_ANYCOLOR).shape

def read(fn):
    with open(fn, 'rb') as f: return len(f.read())

def each(f, path, names, threads):
    parts = [names[i:i+64] for i in range(0, n, 64)]
    with ThreadPoolExecutor(threads) as pool: return sum(pool.map(lambda part: len([f(f'{path}/{o}') for o in part]), parts))

def main():
    from ols_fastai.core import package_versions
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp); df = make(path); names = df.filename.tolist()
        ways = {}
        for t in (1,2):
            ways['check_images',t] = lambda t=t: check_images(df, path, n_workers=t, progress=False)
            ways['limit: read and decode',t] = lambda t=t: each(decode, path, names, t)
            ways['bytes only',t] = lambda t=t: each(read, path, names, t)
        took = {k: [] for k in ways}
        for _ in range(rounds):
            for k,f in ways.items():
                start,cpu = time.perf_counter(),time.process_time(); f(); took[k].append((time.perf_counter()-start,time.process_time()-cpu)); print(k, took[k][-1], flush=True)
    rows = []
    for (way,t),o in took.items():
        best,cpu = (min(x) for x in zip(*o))
        limit,limit_cpu = (min(x) for x in zip(*took['limit: read and decode',t]))
        rows.append(dict(way=way, threads=t, images=n, images_per_s=round(n/best), of_limit=round(limit/best, 3), cpu_us_per_image=round(1e6*cpu/n, 1), cpu_of_limit=round(limit_cpu/cpu, 3), versions=package_versions()))
    with Path(__file__).with_suffix('.csv').open('w', newline='') as f: w = csv.DictWriter(f, rows[0]); w.writeheader(); w.writerows(rows)

if __name__=='__main__': main()
