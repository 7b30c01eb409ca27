"""Fig. 2 of the paper at a size that a CPU can run: how tight the classes lie in the features before the last layer, after training with each of the four methods.

    OMP_NUM_THREADS=1 python benchmarks/compactness.py run ../shared/data/mednist     # half an hour; goes on where it was stopped, and takes the runs of paper.py where they are there
    OMP_NUM_THREADS=1 python benchmarks/compactness.py table ../shared/data/mednist   # compactness.csv and compactness_tsne.csv, of the seeds that are complete

Networks, data, settings and seeds are those of paper.py, each method at its defaults. The features are those of the test images, none of which was trained on."""
import sys
from pathlib import Path
from ols_fastai.experiment import compare
from paper import default, folder, nets, regimes, seeds

here = Path(__file__).parent

def run(mednist, *archs):
    for n in range(1, seeds+1):  # seed by seed, so that what is there at any time is a whole comparison of fewer seeds
        for data,args in regimes(mednist).items():
            for arch in archs or nets: compare(**args, arch=arch, out=folder(data, arch), specs=list(default.values()), seeds=n)

if __name__=='__main__':
    if sys.argv[1]=='run': run(*sys.argv[2:])
