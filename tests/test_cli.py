"The command `ols_compare` as it is started: help at once, one line for a mistake, Ctrl-C, files of every name, edited methods."
import os, re, resource, shutil, signal, subprocess, sys
import cv2, numpy as np, pandas as pd, pytest
from ols_fastai import __version__
from forked import run_forked
from ols_fastai.core import load_metadata

start = "import sys; from ols_fastai.compare.cli import ols_compare; sys.exit(ols_compare())"
tiny = ('--arch','small_cnn', '--size',16, '--bs',8, '--epochs',1, '--workers',0, '--methods','hard')

def environment(**more): return {**os.environ, 'OMP_NUM_THREADS':'1', 'CUDA_VISIBLE_DEVICES':'', 'COLUMNS':'200', **more}

def command(*args, cwd=None): return run_forked(start, *args, cwd=cwd, env=environment())

def fresh_command(*args, **kwargs):
    return subprocess.run([sys.executable, '-c', start, *map(str, args)], capture_output=True, text=True, timeout=300, env=environment(), **kwargs)

def make_tree(root, n=16, name='{}.png'):
    "Folders of three classes, of noisy stripes"
    rng = np.random.default_rng(0)
    for k in range(3):
        (root/f'class {k}').mkdir(parents=True)
        for i in range(n):
            a = rng.integers(0, 120, (16,16)).astype(np.uint8)
            a[::k+2] += 100
            (root/f'class {k}'/name.format(i)).write_bytes(cv2.imencode('.png', a)[1].tobytes())
    return root

# --- the start

@pytest.mark.parametrize('args,says', [(['--version'],f'ols_compare {__version__}'), (['--help'],'--list-methods'), (['--workers','-1'],'--workers must be 0 or more'),
                                       (['--folder','a','--data','brain_regions'],'give one'), (['--epoch=3','--nonsense'],'--nonsense')])
def test_help_and_mistyped_options_import_nothing_heavy(args, says):
    code = f"import sys\nfrom ols_fastai.compare.cli import ols_compare\ntry: ols_compare({args!r})\nexcept SystemExit: pass\nprint([o for o in ('torch','fastai','pandas','cv2','matplotlib','timm') if o in sys.modules])"
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=environment())
    assert says in r.stdout+r.stderr and r.stdout.splitlines()[-1]=='[]', r.stdout+r.stderr

def test_no_warning_of_other_packages_greets_a_start_and_the_users_own_are_shown(tmp_path):
    (tmp_path/'mine.py').write_text("import warnings\nwarnings.warn('my own', FutureWarning)\nwarnings.warn('`torch.jit.script` is deprecated: by me', FutureWarning)\n")
    r = fresh_command('--list-methods', '--methods-from',tmp_path/'mine.py')
    assert r.returncode==0 and 'label smoothing (Szegedy' in r.stdout
    assert r.stderr.count('FutureWarning: ')==2 and 'FutureWarning: my own' in r.stderr and 'by me' in r.stderr, r.stderr

def test_every_setting_is_an_option_with_its_comment_as_help():
    from dataclasses import fields
    from fastcore.docments import docments
    from ols_fastai.compare import cli
    from ols_fastai.compare.comparison import compare
    from ols_fastai.compare.plan import plan_comparison
    from ols_fastai.compare.settings import PAPER_RECIPE, Settings
    import inspect
    text = re.sub(r'\s+', ' ', cli._parser().format_help())
    for f in fields(Settings):
        comment = docments(Settings)[f.name].strip()
        assert f"--{f.name.replace('_', '-')} " in text and re.sub(r'\s+', ' ', comment) in text
        for o in (compare,plan_comparison):
            assert inspect.signature(o).parameters[f.name].default==f.default and docments(o)[f.name].strip()==comment
    assert set(PAPER_RECIPE)-{'methods','seeds'}<={f.name for f in fields(Settings)}

# --- a folder of images

def test_a_folder_is_compared_twice_with_its_results_inside(tmp_path):
    make_tree(tmp_path)
    args = ['--folder','.', *tiny]
    r = command(*args, cwd=tmp_path); assert r.returncode==0, r.stderr
    assert (tmp_path/'ols_compare_results/report.html').exists() and (tmp_path/'ols_compare_results/reliability.png').exists()
    r = command(*args, cwd=tmp_path); assert r.returncode==0, r.stderr
    assert 'made before' in r.stdout and '3 classes' in r.stdout

def test_names_that_are_no_utf8_come_through_to_the_report(tmp_path):
    root = tmp_path/'images'
    make_tree(root, name=os.fsdecode(b'caf\xe9 {}.png'))
    try: (root/'class 0').rename(root/os.fsdecode(b'h\xe9matome'))
    except OSError: pytest.skip('this disk takes UTF-8 alone')
    (root/'class 1'/os.fsdecode(b'caf\xe9 0.png')).write_bytes(b'no picture')
    r = command('--folder',root, *tiny, '--check', '--methods','hard,ols', '--out',tmp_path/'out')
    assert r.returncode==0 and 'Traceback' not in r.stderr, r.stderr
    assert '1 unreadable' in r.stdout
    assert {'results.csv','reliability.png','soft_labels.png','report.html','check.csv'}<={o.name for o in (tmp_path/'out').iterdir()}, r.stderr
    assert 'missing' not in r.stderr and 'leaves out' not in r.stderr, r.stderr

def test_patients_are_found_in_names_and_judged_by(tmp_path):
    root = tmp_path/'images'
    make_tree(root, n=20)
    for fn in root.rglob('*.png'): fn.rename(fn.with_name(f'p{int(fn.stem)//2}_{fn.stem}_{fn.parent.name[-1]}.png'))
    r = command('--folder',root, *tiny, '--patient-from',r'p(\d+)_', '--groups','patient', '--out',tmp_path/'out')
    assert r.returncode==0, r.stderr
    found = re.search(r'3 classes: class 0, class 1, class 2; 10 patients \(that of class 0/p(\d+)_\d+_0.png is (\d+)\), 10 of them with images of several classes', ' '.join(r.stdout.split()))
    assert found and found[1]==found[2], r.stdout
    (tmp_path/'high').mkdir(); root.rename(tmp_path/'high/images')
    r2 = command('--folder',tmp_path/'high', *tiny, '--out',tmp_path/'out2', '--plan')
    assert r2.returncode==2 and "one class, 'images'" in r2.stderr and 'one level too high' in r2.stderr, r2.stderr
    page = re.sub('<.*?>', '', (tmp_path/'out/report.html').read_text())
    assert 'drawn one by one' not in r.stdout and 'patients in more than one split: 0' in page   # the checklist's answer

def test_a_folder_is_divided_as_asked(tmp_path):
    root = make_tree(tmp_path/'images', n=20)
    args = ['--folder',root, *tiny, '--plan', '--valid-share','.25', '--out',tmp_path/'out']
    r = command(*args, '--test-share','.35')
    assert r.returncode==0 and 'folder: 24 images for train, 15 images for valid, 21 images for test' in r.stdout, r.stdout+r.stderr
    r = command(*args, '--patient-from',r'(\d)\.png$', '--test-share','.9')
    assert r.returncode==2 and '--valid-share and --test-share are above 0' in r.stderr, r.stderr
    (tmp_path/'divided').mkdir()
    for o in ('train','valid','test'): make_tree(tmp_path/'divided'/o)
    r = command('--folder',tmp_path/'divided', *args[2:])
    assert r.returncode==2 and 'has folders of splits: leave out --valid-share' in r.stderr, r.stderr
    shutil.rmtree(tmp_path/'divided'/'valid')
    r = command('--folder',tmp_path/'divided', *args[2:])
    said = re.search(r'folder: (\d+) images for train, (\d+) images for valid, (\d+) images for test', r.stdout)
    n = len(list((tmp_path/'divided'/'train').rglob('*.png')))
    assert r.returncode==0 and int(said[1])+int(said[2])==n and abs(int(said[2])-n/4)<=2, r.stdout+r.stderr
    r = command('--folder',tmp_path/'divided', *args[2:], '--test-share','.2')
    assert r.returncode==2 and 'has folders of splits: leave out --valid-share' in r.stderr, r.stderr

def test_a_pattern_that_finds_too_few_patients_is_said(tmp_path):
    root = make_tree(tmp_path/'images')
    r = command('--folder',root, *tiny, '--plan', '--patient-from',r'(\d)\d*\.png$', '--out',tmp_path/'out')
    assert r.returncode==0, r.stderr
    r = command('--folder',root, *tiny, '--plan', '--patient-from',r'(png)$', '--out',tmp_path/'out')
    assert r.returncode==2 and 'patient has 1 different values' in r.stderr and 'pattern that found it' in r.stderr, r.stderr

# --- mistakes

def test_remedies_are_options(tmp_path):
    root = make_tree(tmp_path/'images')
    table = pd.DataFrame([(f'class {k}/{i}.png', f'class {k}', i//2) for k in range(3) for i in range(16)], columns=['filename','label','patient'])
    for split,rows in dict(train=table[table.patient<5], valid=table[table.patient.between(4,5)], test=table[table.patient>5]).items(): rows.to_csv(root/f'{split}.csv', index=False)
    lists = [o for split in ('train','valid','test') for o in (f'--{split}',root/f'{split}.csv')]
    r = command(*lists, *tiny, '--out',tmp_path/'out')
    assert r.returncode==2 and '--allow-overlap' in r.stderr and 'allow_overlap' not in r.stderr and r.stderr.count('\n')<=2, r.stderr
    r = command(*lists, *tiny, '--allow-overlap','file,patient', '--out',tmp_path/'out', '--plan')
    assert r.returncode==0, r.stderr

def test_a_full_disk_is_one_line(tmp_path):
    root = make_tree(tmp_path/'images')
    def small_files(): resource.setrlimit(resource.RLIMIT_FSIZE, (300_000,300_000))   # the weights have 1.1 MB
    r = fresh_command('--folder',root, *tiny, '--out',tmp_path/'out', preexec_fn=small_files)
    assert r.returncode==2 and 'Traceback' not in r.stderr, r.stderr
    last = r.stderr.strip().splitlines()[-1]
    assert last.startswith('ols_compare: ') and 'File too large: make room, and run the same command again to resume' in last, r.stderr
    assert not list((tmp_path/'out').rglob('.*part*'))

def test_a_run_that_fails_is_said_and_the_others_come_out(tmp_path):
    root = make_tree(tmp_path/'images')
    (tmp_path/'mine.py').write_text('''
from ols_fastai.all import *
from fastai.basics import *
class Diverges(Callback):
    def after_pred(self): self.learn.pred = self.learn.pred*float('nan')
METHODS['nan'] = Method('diverging', lambda: (CrossEntropyLossFlat(), Diverges()), 'here')
''')
    r = command('--folder',root, *tiny, '--methods-from',tmp_path/'mine.py', '--methods','nan,hard', '--out',tmp_path/'out')
    assert r.returncode==2 and 'Traceback' not in r.stderr
    assert 'ols_compare: diverging, seed 0: predictions are not finite, the training has diverged; a lower --lr may help' in r.stderr
    assert 'left out: nan' in (tmp_path/'out/report.html').read_text() and set(pd.read_csv(tmp_path/'out/results.csv').method)=={'hard'}

# --- stopped, killed, edited

mine = '''
import os, signal, time
from ols_fastai.all import *
from fastai.basics import *
class Stops(Callback):
    "In the second epoch, as the environment says"
    order,run_valid = 99,False
    def after_batch(self):
        how = os.environ.get('STOPS')
        if self.epoch<1 or not how: return
        if how=='kill': os.kill(os.getpid(), signal.SIGKILL)
        print('waiting', flush=True)
        time.sleep(200)
METHODS['mine'] = Method('mine', lambda: (CrossEntropyLossFlat(), Stops()), 'here')
'''

def own(tmp_path):
    root = make_tree(tmp_path/'images')
    (tmp_path/'mine.py').write_text(mine)
    return ['--folder',root, *tiny, '--epochs',3, '--methods-from',tmp_path/'mine.py', '--methods','mine', '--out',tmp_path/'out']

def test_a_killed_run_does_not_go_on_with_edited_code(tmp_path, monkeypatch):
    args = own(tmp_path)
    monkeypatch.setenv('STOPS', 'kill')
    r = command(*args); assert r.returncode==-signal.SIGKILL, r.stderr
    assert (tmp_path/'out/unfinished/mine-0.pt').exists()
    monkeypatch.delenv('STOPS')
    (tmp_path/'mine.py').write_text(mine.replace('CrossEntropyLossFlat()', 'CrossEntropyLossFlat(label_smoothing=.5)'))
    r = command(*args)
    assert r.returncode==2 and 'mine-0.pt was made with other settings (code was' in r.stderr and not list((tmp_path/'out/runs').iterdir()), r.stderr
    (tmp_path/'mine.py').write_text(mine)
    r = command(*args); assert r.returncode==0, r.stderr
    assert load_metadata(tmp_path/'out/runs/mine-0.safetensors')['settings']['code']

def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch):
    args = own(tmp_path)
    monkeypatch.setenv('STOPS', 'wait')
    # a shell starts what is in the background with Ctrl-C switched off, and children keep that
    as_typed = 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler); '+start
    p = subprocess.Popen([sys.executable, '-c', as_typed, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(STOPS='wait'))
    for line in p.stdout:
        if 'waiting' in line: break
    for _ in range(4):  # one that hits a destructor is lost in Python, and a user would press again
        p.send_signal(signal.SIGINT)
        try: out,err = p.communicate(timeout=60)
        except subprocess.TimeoutExpired: continue
        break
    assert p.returncode==130 and err.strip().splitlines()[-1]=='ols_compare: stopped; run the same command again to resume' and 'Traceback' not in err, err
    monkeypatch.delenv('STOPS')
    r = command(*args); assert r.returncode==0, r.stderr
    assert not list((tmp_path/'out/unfinished').iterdir())

def test_a_check_of_other_images_is_not_trusted(tmp_path):
    root = make_tree(tmp_path/'images')
    args = ['--folder',root, *tiny, '--check', '--plan', '--out',tmp_path/'out']
    r = command(*args); assert r.returncode==0 and 'all images are sound' in r.stdout, r.stderr
    made = (tmp_path/'out/check.csv').stat().st_mtime_ns
    r = command(*args); assert (tmp_path/'out/check.csv').stat().st_mtime_ns==made, 'the same images are not looked at again'
    fn = root/'class 1/3.png'
    before = fn.stat()
    fn.write_bytes(cv2.imencode('.png', np.zeros((16,16), np.uint8))[1].tobytes())
    assert fn.stat().st_mtime_ns!=before.st_mtime_ns
    r = command(*args); assert '1 blank' in r.stdout, r.stdout

# --- several processes

def launched(*args):
    return subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', '--no-python', sys.executable, '-c', start, *map(str, args)],
                          capture_output=True, text=True, timeout=300, env=environment(ACCELERATE_USE_CPU='true'))

def test_two_processes_check_split_train_and_report(tmp_path):
    root = make_tree(tmp_path/'images')
    (root/'class 1/3.png').write_bytes(b'no picture')
    r = launched('--folder',root, *tiny, '--check', '--arch','small_cnn,small_vgg', '--methods','tfkd_self,ols', '--out',tmp_path/'out')
    assert r.returncode==0, r.stderr[-3000:]
    assert r.stdout.count('1 unreadable')==1 and r.stdout.count('report.html')==2
    assert len(pd.read_csv(tmp_path/"out/results.csv"))==8 and len(pd.read_csv(tmp_path/"out/small_cnn/results.csv"))==6   # the baseline has its rows, too

def test_a_mistake_in_two_processes_is_said_once_and_ends_both(tmp_path):
    root = make_tree(tmp_path/'images')
    r = launched('--folder',root, *tiny, '--bs',500, '--out',tmp_path/'out')
    assert r.returncode!=0 and r.stderr.count('Give a smaller --bs')==1, r.stderr[-3000:]
    r = launched('--folder',root, *tiny, '--bs',7, '--out',tmp_path/'out')
    assert r.returncode!=0 and '--bs must be a multiple of 2' in r.stderr, r.stderr[-3000:]
