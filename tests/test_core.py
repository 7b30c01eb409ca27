"Files survive kills and full disks; a folder belongs to one command at a time; what the first process decides, all do."
import os, signal, subprocess, sys, time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
import cv2, pandas as pd, pytest, torch
from ols_fastai import core
from ols_fastai.core import FirstProcessFailed, atomic_write, first_process, load_tensors, lock_folder, package_versions, read_csv, remove_parts, save_tensors, write_csv

def python(code, *launcher, **env):
    return subprocess.run([sys.executable, *launcher, '-c', code] if not launcher else [sys.executable, *launcher, code], capture_output=True, text=True, timeout=200,
                          env={**os.environ, 'OMP_NUM_THREADS':'1', 'CUDA_VISIBLE_DEVICES':'', **env})

def names(folder): return sorted(o.name for o in folder.iterdir())

def killed_writer(fn):
    "A process that is killed while it writes `fn`"
    p = subprocess.Popen([sys.executable, '-c', f'''
import time
from ols_fastai.core import atomic_write
with atomic_write({str(fn)!r}) as part:
    part.write_text('half')
    print('writing', flush=True)
    time.sleep(100)'''], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline()=='writing\n'
    p.kill()
    p.wait()

def test_a_killed_writer_leaves_nothing_for_ever(tmp_path):
    fn = tmp_path/'table[1].csv'
    fn.write_text('old')
    killed_writer(fn)
    assert fn.read_text()=='old' and len(names(tmp_path))==2
    with atomic_write(fn) as part: part.write_text('new')
    assert fn.read_text()=='new' and names(tmp_path)==['table[1].csv']
    killed_writer(tmp_path/'other.csv')
    remove_parts(tmp_path)
    assert names(tmp_path)==['table[1].csv']

def test_a_writer_at_work_keeps_its_part(tmp_path):
    fn = tmp_path/'a.csv'
    with atomic_write(fn) as part:
        part.write_text('first')
        with atomic_write(fn) as other: other.write_text('second')
        remove_parts(tmp_path)
        assert part.exists()
    assert fn.read_text()=='first'

def test_parts_of_another_machine_are_left_for_a_day(tmp_path):
    part = tmp_path/'.a.csv.part-elsewhere-1-abc'
    part.mkdir()
    remove_parts(tmp_path)
    assert part.exists()
    os.utime(part, (time.time()-2*86400,)*2)
    remove_parts(tmp_path)
    assert not part.exists()

def test_bytes_are_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    done = []
    fsync,rename = os.fsync,Path.replace
    monkeypatch.setattr(core.os, 'fsync', lambda fd: (done.append('fsync'), fsync(fd)))
    monkeypatch.setattr(core.os, 'sync', lambda: done.append('sync'))
    monkeypatch.setattr(Path, 'replace', lambda self, to: (done.append('rename'), rename(self, to))[1])
    write_csv(pd.DataFrame(dict(a=[1])), tmp_path/'a.csv')
    assert done[:2]==['fsync','rename']
    done.clear()
    with atomic_write(tmp_path/'folder') as part:
        part.mkdir()
        (part/'a.txt').write_text('a')
    assert done[:2]==['sync','rename']

@pytest.mark.parametrize('umask,mode', [(0o022, 0o644), (0o007, 0o660)])
def test_files_are_as_readable_as_others(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        save_tensors(tmp_path/'a.safetensors', dict(x=torch.ones(2)), {})
        write_csv(pd.DataFrame(dict(a=[1])), tmp_path/'a.csv')
        with atomic_write(tmp_path/'a.pt') as part: torch.save(torch.ones(2), part)
    finally: os.umask(before)
    assert {o.stat().st_mode & 0o777 for o in tmp_path.iterdir()}=={mode}

@pytest.mark.parametrize('write', ["save_tensors(fn, dict(x=torch.ones(10**7)), {})", "write_csv(pd.DataFrame(dict(a=range(10**6))), fn)",
                                   "exec('with atomic_write(fn) as part: torch.save(torch.ones(10**7), part)')"])
def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path, write):
    "A limit of the size of a file is the nearest to a full disk that a test can have"
    fn = tmp_path/'a.bin'
    fn.write_text('old')
    r = python(f'''
import pandas as pd, resource, torch
from ols_fastai.core import *
resource.setrlimit(resource.RLIMIT_FSIZE, (10**6,10**6))
fn = {str(fn)!r}
try: {write}
except OSError as e: print(type(e).__name__, e.filename==fn, e.strerror)''')
    assert r.stdout=='OSError True File too large\n', r.stderr[-2000:]
    assert fn.read_text()=='old' and names(tmp_path)==['a.bin']

def test_two_commands_can_not_lock_one_folder(tmp_path):
    hold = f'''
import time
from ols_fastai.core import lock_folder
with lock_folder({str(tmp_path)!r}):
    print('locked', flush=True)
    time.sleep(100)'''
    p = subprocess.Popen([sys.executable, '-c', hold], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline()=='locked\n'
    with pytest.raises(ValueError, match='another command is at work'):
        with lock_folder(tmp_path): pass
    p.send_signal(signal.SIGKILL)
    p.wait()
    with lock_folder(tmp_path):   # of a killed one nothing is left
        with lock_folder(tmp_path): pass

def test_tables_hold_names_that_are_no_utf8(tmp_path):
    name = os.fsdecode(b'caf\xe9.png')
    write_csv(pd.DataFrame(dict(filename=[name]), dtype=object), tmp_path/'a.csv')
    assert (tmp_path/'a.csv').read_bytes()==b'filename\ncaf\xe9.png\n' and read_csv(tmp_path/'a.csv').filename[0]==name

@pytest.mark.parametrize('there', ['opencv-python','opencv-python-headless','opencv-contrib-python-headless',None])
def test_opencv_may_have_other_names(there, monkeypatch):
    def version(name):
        if name in ('ols_fastai','fastai','torch','timm'): return '1'
        if name!=there: raise PackageNotFoundError(name)
        return '4.0'
    monkeypatch.setattr('ols_fastai.core.version', version)
    assert package_versions()['opencv-python']==('4.0' if there else cv2.__version__)

def test_layers_that_share_weights_are_kept(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(2,2), torch.nn.Linear(2,2))
    net[1].weight = net[0].weight
    save_tensors(tmp_path/'net.safetensors', net.state_dict(), {})
    assert torch.equal(load_tensors(tmp_path/'net.safetensors')[0]['1.weight'], net[0].weight)

def test_one_process_calls_plainly():
    assert first_process(max, 1, 2)==2
    with pytest.raises(ZeroDivisionError): first_process(lambda: 1/0)

def test_what_the_first_process_finds_all_have(tmp_path):
    worker = tmp_path/'worker.py'
    worker.write_text('''
import os, sys, time, torch
from pathlib import Path
from ols_fastai.core import *
rank,tmp = int(os.environ['RANK']),Path(sys.argv[0]).parent
found = first_process(lambda: (time.sleep(1), rank, torch.arange(3))[1:])   # the second would be there long before
assert found[0]==0 and found[1].tolist()==[0,1,2], found
def fails(): raise OSError('no such list')
try: first_process(fails)
except FirstProcessFailed as e: caught = f'second {e}'
except OSError as e: caught = f'first {e}'
end_processes()
assert not torch.distributed.is_initialized()
try: again = first_process(lambda: rank)
except RuntimeError as e: again = str(e)[:13]
end_processes()                            # harmless
(tmp/f'{rank}.txt').write_text(f'{caught} {again}')
''')
    r = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(worker)], capture_output=True, text=True, timeout=200,
                       env={**os.environ, 'OMP_NUM_THREADS':'1', 'CUDA_VISIBLE_DEVICES':'', 'ACCELERATE_USE_CPU':'true'})
    assert r.returncode==0, r.stderr[-3000:]
    assert (tmp_path/'0.txt').read_text()=='first no such list end_processes' and (tmp_path/'1.txt').read_text()=='second no such list end_processes'
    assert issubclass(FirstProcessFailed, ValueError)
