"Lists of images, folders, splits, loaders and the check before the night: each sentence that the notebooks say of them, and files that nobody would write."
import csv, io, os, shutil, subprocess, sys, warnings
from functools import partial
import cv2, numpy as np, pandas as pd, pytest, torch
from hypothesis import example, given, settings, strategies as st
from fastai.vision.all import Flatten, Learner, CrossEntropyLossFlat, Tensor, accuracy, nn, no_random, noop, plt
from fastai.callback.progress import ProgressCallback
from ols_fastai.data.checks import check_images
from ols_fastai.data.tables import *
from ols_fastai.data.splits import *
from ols_fastai.data.lists import *
from ols_fastai.data.folders import *
from ols_fastai.data.files import *
from ols_fastai.data.items import *
from ols_fastai.data.loaders import *
from ols_fastai.data.datasets import RadImageNet
from ols_fastai.train.models import create_model, load_radimagenet

def picture(fn, seed=None, size=24):
    fn.parent.mkdir(parents=True, exist_ok=True)
    seed = abs(hash(str(fn.name)))%2**31 if seed is None else seed
    assert cv2.imwrite(str(fn), np.random.default_rng(seed).integers(0, 256, (size,size), dtype=np.uint8))

def write(fn, rows, header='filename,label'):
    fn.write_text('\n'.join([*([header] if header else []), *[','.join(o) for o in rows]])+'\n')
    return fn

@pytest.fixture
def shapes(tmp_path):
    "Two classes, 8 images each to train on, 3 to validate, 2 to test"
    i,lists = 0,{}
    for split,n in dict(train=8, valid=3, test=2).items():
        rows = []
        for label in ('cyst','tear'):
            for k in range(n):
                picture(tmp_path/f'img/{label}/{split}{k}.png', i); i += 1
                rows.append((f'img/{label}/{split}{k}.png', label))
        lists[split] = write(tmp_path/f'{split}.csv', rows)
    return lists

def quiet(dls):
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(2), Flatten(), nn.Linear(12, len(dls.vocab))), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    learn.remove_cb(ProgressCallback); learn.logger,learn.create_mbar = noop,False
    return learn

def pairs(items): return sorted(map(tuple, items.frame()[['filename','label']].values))

# --- list files ---------------------------------------------------------------------------------------------------------------------------

def test_columns_by_argument_and_extras_kept(tmp_path):
    fn = write(tmp_path/'a.csv', [('7','CT','x.png','cyst')], 'patient,modality,image,finding')
    df = read_list(fn, 'image', 'finding')
    assert df.iloc[0].to_dict()==dict(filename='x.png', label='cyst', patient='7', modality='CT', list=str(fn), line=2)

@pytest.mark.parametrize('header', [True,False])
@pytest.mark.parametrize('sep', [',',';','\t',' ','   '])
def test_separators(tmp_path, sep, header):
    (tmp_path/'a.csv').write_text('\n'.join([*([sep.join(['filename','label','modality'])] if header else []), sep.join(['a/1.png','x','CT']), sep.join(['b/2.png','y','MR'])]))
    df = read_list(tmp_path/'a.csv', header=header)
    assert df[['filename','label']].values.tolist()==[['a/1.png','x'],['b/2.png','y']] and df.iloc[:,2].tolist()==['CT','MR']
    assert df.line.tolist()==[1+header, 2+header]

def test_blanks_in_names_with_commas(tmp_path):
    assert read_list(write(tmp_path/'a.csv', [('my images/left knee.png','torn ligament')]))[['filename','label']].values.tolist()==[['my images/left knee.png','torn ligament']]

def test_quoted_commas_and_byte_order_mark(tmp_path):
    (tmp_path/'a.csv').write_bytes('\ufefffilename,label\r\n"a,b.png","x, acute"\r\n'.encode())
    assert read_list(tmp_path/'a.csv').iloc[0,:2].tolist()==['a,b.png','x, acute']

@pytest.mark.parametrize('text,says', [('filename,class\na,b\n', "no column 'label'"), ('filename,label\na.png,\n', 'line 2: empty label'), ('filename,label\n,x\n', 'line 2: empty filename'), ('filename,label\n', 'no rows'),
    ('', 'empty'), ('filename,label\n\na.png,x\n../../etc/b.png,y\n', 'line 4: ../../etc/b.png leads out'), ('filename,label\na/../../b.png,y\n', 'line 2: a/../../b.png leads out'), ('filename,label\na.png,x,y\n', 'line 2 has 3 fields'),
    ('filename,label,label\na.png,x,y\n', "2 columns 'label'"), ('filename,label\n"a.png,x\nb.png",y\n', 'quotation mark'), ('filename,label\na.png,"x\n', 'not a CSV'), ('a.png,x\n', 'header=False')])
def test_errors_name_file_and_row(tmp_path, text, says):
    (tmp_path/'some.csv').write_text(text)
    with pytest.raises(ValueError) as e: read_list(tmp_path/'some.csv')
    assert says in str(e.value) and 'some.csv' in str(e.value)

def test_several_files_and_other_columns(tmp_path):
    a,b,v = write(tmp_path/'a.csv', [('1.png','x')]),write(tmp_path/'b.csv', [('2.png','y','CT')], 'filename,label,modality'),write(tmp_path/'v.csv', [('3.png','y')])
    df = read_lists([a,b], v)
    assert df.filename.tolist()==['1.png','2.png','3.png'] and df.modality.tolist()==['','CT',''] and df.split.tolist()==['train','train','valid']
    assert df.list.tolist()==[str(a),str(b),str(v)]

def test_label_that_training_lacks(tmp_path):
    a,v = write(tmp_path/'a.csv', [('1.png','x')]),write(tmp_path/'v.csv', [('2.png','x'),('3.png','new')])
    with pytest.raises(ValueError, match=r"v\.csv, line 3: label 'new' of valid"): read_lists(a, v)
    with pytest.raises(ValueError, match=r"v\.csv, line 3: label 'new' of test"): read_lists(a, write(tmp_path/'w.csv', [('5.png','x')]), v)

def test_same_file_in_two_splits(tmp_path):
    a,v = write(tmp_path/'a.csv', [('d/1.png','x')]),write(tmp_path/'v.csv', [('d/./e/..//1.png','x')])
    with pytest.raises(ValueError, match=r'd/1\.png is in train and in valid'): read_lists(a, v)
    assert len(read_lists(a, v, allow_overlap='file'))==2
    with pytest.raises(ValueError, match="not 'files'"): read_lists(a, v, allow_overlap='files')
    assert len(read_lists([a, write(tmp_path/'b.csv', [('d/1.png','x')])], write(tmp_path/'w.csv', [('2.png','x')])))==3   # twice in one split is check_images' matter

def test_same_file_by_link_absolute_name_or_case(shapes, tmp_path):
    (tmp_path/'img/link').symlink_to('cyst')
    for name in ('img/link/train0.png', str(tmp_path/'img/cyst/train0.png'), 'img/CYST/Train0.PNG'):
        v = write(tmp_path/'v.csv', [(name,'cyst')])
        with pytest.raises(ValueError, match='img/cyst/train0.png is in train and in valid'): image_dls(shapes['train'], v, bs=2, num_workers=0)
        assert len(image_dls(shapes['train'], v, bs=2, num_workers=0, allow_overlap='file').valid_ds)==1

def test_same_patient_in_two_splits(tmp_path):
    a,v = (write(tmp_path/f'{o}.csv', [(f'{o}.png','x','P7'),(f'{o}2.png','x','')], 'filename,label,who') for o in 'av')
    read_lists(a, v)
    with pytest.raises(ValueError, match='who P7 is in train and in valid'): read_lists(a, v, patient='who')
    assert len(read_lists(a, v, patient='who', allow_overlap='patient'))==4
    for o in (a,v): o.write_text(o.read_text().replace('who', 'patient'))
    with pytest.raises(ValueError, match='patient P7'): read_lists(a, v)

# --- fuzz ---------------------------------------------------------------------------------------------------------------------------------

def own_error(e, fn):
    assert isinstance(e, (ValueError,FileNotFoundError)) and not isinstance(e, UnicodeError) and fn.name in str(e), repr(e)

field = st.text(st.characters(codec='utf-8', exclude_categories=['Cs']), max_size=12)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(rows=st.lists(st.tuples(field, field, field), min_size=1, max_size=5), sep=st.sampled_from(',;\t'), order=st.permutations([0,1,2]), header=st.booleans(), say=st.booleans())
@example(rows=[('a b.png','x','')], sep=';', order=[2,0,1], header=True, say=False)
@example(rows=[('a','"','b')], sep=',', order=[0,1,2], header=True, say=True)
@example(rows=[('a,b.png','x','')], sep=';', order=[0,1,2], header=False, say=False)
def test_fuzz_what_csv_writes_is_read(rows, sep, order, header, say, tmp_path_factory):
    "Any text in three columns in any order: read as it was written, or refused by name"
    fn = tmp_path_factory.getbasetemp()/'fuzz.csv'
    f = io.StringIO()
    names = ['filename','label','note']
    csv.writer(f, delimiter=sep).writerows([[o[i] for i in order] for o in ([names] if header else [])+rows])
    fn.write_bytes(f.getvalue().encode())
    at = {} if header else dict(filename=order.index(0), label=order.index(1))
    try: df = read_list(fn, **at, header=header, sep=sep if say else None)
    except Exception as e: return own_error(e, fn)
    want = [(os.path.normpath(a.strip()),b.strip()) for a,b,c in rows if any(map(str.strip, (a,b,c)))]
    got = list(zip(df.filename, df.label))
    if all(a[:2]!='//' for a,_ in want): assert got==want

@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data(), sep=st.sampled_from([',',';','\t',' ']))
def test_fuzz_damaged_list(data, sep, tmp_path_factory):
    "A list with bytes changed, put in or taken out: the rows that are read are rows of the file, each with the label of its line"
    fn = tmp_path_factory.getbasetemp()/'damaged.csv'
    text = bytearray(('filename,label,p\n'+'\n'.join(f'd{i}/{i}.png,c{i%3},{i}' for i in range(6))+'\n').replace(',', sep).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        i,b = data.draw(st.integers(0, len(text)-1)),data.draw(st.sampled_from(b'\n\r,; \t/.\0x\xff\xc3'))
        kind = data.draw(st.sampled_from(['put','take','change']))
        if kind=='put': text.insert(i, b)
        elif kind=='take': del text[i]
        else: text[i] = b
    fn.write_bytes(text)
    try: df = read_list(fn)
    except Exception as e: return own_error(e, fn)
    lines = io.StringIO(text.decode('utf-8-sig'), newline='').readlines()
    head = next(o for o in lines if o.strip())
    for row in df.itertuples():
        split_line = lines[row.line-1].split if sep==' ' and ',' not in head else partial(lines[row.line-1].split, sep)
        parts = [o.strip() for o in split_line()]
        names = [o.strip() for o in (head.split() if sep==' ' else head.split(sep))]
        assert (row.filename,row.label)==(os.path.normpath(parts[names.index('filename')]),parts[names.index('label')])

@settings(max_examples=150, deadline=None, derandomize=True)
@given(raw=st.binary(max_size=200), header=st.booleans())
def test_fuzz_bytes(raw, header, tmp_path_factory):
    fn = tmp_path_factory.getbasetemp()/'raw.csv'
    fn.write_bytes(raw)
    try: df = read_list(fn, header=header)
    except Exception as e: return own_error(e, fn)
    assert len(df) and all(df.filename!='') and all(df.label!='')

# --- folders and splits -------------------------------------------------------------------------------------------------------------------

def test_folder_tree(tmp_path):
    for i,o in enumerate(['b/2.png','a/x/1.jpg','a/3.bmp']): picture(tmp_path/o, i)
    (tmp_path/'a/notes.txt').touch(); (tmp_path/'.hidden').mkdir()
    assert read_folder(tmp_path)[['filename','label']].values.tolist()==[['a/3.bmp','a'],['a/x/1.jpg','a'],['b/2.png','b']]

def test_folder_tree_with_splits(tmp_path):
    for i,o in enumerate(['Train/a/1.png','Train/b/2.png','val/a/3.png','test/b/4.png']): picture(tmp_path/o, i)
    df = read_folder(tmp_path)
    assert df.values.tolist()==[['Train/a/1.png','a','train'],['Train/b/2.png','b','train'],['val/a/3.png','a','valid'],['test/b/4.png','b','test']]
    assert [len(o.dataset) for o in image_dls(df, root=tmp_path, bs=1, num_workers=0).loaders]==[2,1,1]
    picture(tmp_path/'val/c/5.png')
    with pytest.raises(ValueError, match="label 'c' of valid is not among the 2"): read_folder(tmp_path)
    (tmp_path/'extra').mkdir()
    with pytest.raises(ValueError, match='extra, which is none'): read_folder(tmp_path)

def people(n=600, n_people=90, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.integers(0, n_people, n)
    return pd.DataFrame(dict(filename=[f'{i}.png' for i in range(n)], label=np.array(list('aabbc'))[p%5], patient=[f'P{o}' for o in p]))

@pytest.mark.parametrize('seed', range(3))
def test_split_by_group(seed):
    df = people()
    s = split_by_group(df, valid=.2, test=.2, seed=seed)
    assert s.groupby('patient').split.nunique().max()==1 and s.drop(columns='split').equals(df)
    share = pd.crosstab(s.label, s.split, normalize='index')
    assert ((share-[.2,.6,.2]).abs()<.07).all(axis=None)       # of each class, as asked for: stratified
    assert split_counts(s).images.tolist()==[(s.split==o).sum() for o in SPLITS] and split_counts(s).patients.sum()==df.patient.nunique()
    check_splits(s)

def test_split_by_group_keeps_every_class_in_training():
    df = pd.DataFrame(dict(filename=[f'{i}.png' for i in range(40)], label=[f'c{i//2}' for i in range(40)], patient=[f'P{i//2}' for i in range(40)]))   # a patient a class
    assert set(split_by_group(df).split)=={'train'}
    few = people(12, 6)
    for seed in range(5): check_splits(split_by_group(few, valid=.3, test=.3, seed=seed))

# --- where the images are -----------------------------------------------------------------------------------------------------------------

def test_root_or_its_parent_and_missing_images(shapes, tmp_path):
    df = read_lists(*shapes.values())
    assert find_root(df, tmp_path)==find_root(df, tmp_path/'img')==tmp_path
    (tmp_path/'img/tear/valid1.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 of 26 images .* img/tear/valid1\.png \(.*valid\.csv, line 6\)'): find_root(df, tmp_path)
    assert find_root(df, tmp_path, check_files=False)==tmp_path
    with pytest.raises(FileNotFoundError, match='under'): image_dls(shapes['train'], shapes['valid'], bs=2)
    assert len(image_dls(shapes['train'], shapes['valid'], bs=2, num_workers=0, check_files=False).valid_ds)==6
    with pytest.raises(FileNotFoundError, match='root must be'): find_root(df, tmp_path/'img/tear')

def test_absolute_names(shapes, tmp_path):
    a,v = (write(tmp_path/f'abs_{o}.csv', [(str(tmp_path/fn),l) for fn,l in pd.read_csv(shapes[o]).values]) for o in ('train','valid'))
    for root in (None,tmp_path): assert image_dls(a, v, root=root, bs=2, num_workers=0).one_batch()[0].shape==(2,3,224,224)
    with pytest.raises((ValueError,FileNotFoundError), match='outside|under'): image_dls(a, v, root=tmp_path/'img/cyst', bs=2)
    with pytest.raises(FileNotFoundError, match='no folder .*nowhere'): image_dls(a, v, root=tmp_path/'nowhere', bs=2)

def test_case_is_taken_only_where_it_is_clear(shapes, tmp_path):
    df = read_lists(*shapes.values())
    assert find_images(df.assign(filename=df.filename.str.swapcase()), tmp_path).equals(df)
    picture(tmp_path/'img/cyst/TRAIN0.png', 99)
    assert find_images(df, tmp_path).equals(df)                       # the exact name wins
    with pytest.raises(ValueError, match='may be'): find_images(df.assign(filename=df.filename.str.replace('train0', 'Train0')), tmp_path)

# --- loaders ------------------------------------------------------------------------------------------------------------------------------

def test_each_image_with_its_label(shapes, tmp_path):
    dls = image_dls(**shapes, size=24, bs=4, num_workers=2)
    for i,split in enumerate(SPLITS):
        want = pd.read_csv(shapes[split])
        assert pairs(dls[i].items)==sorted(map(tuple, want.values))
        dl = dls[i].new(shuffle=False, drop_last=False)
        x,y = (torch.cat(o) for o in zip(*dl))
        assert [dls.vocab[o] for o in y]==want.label.tolist()
        back = ((x[:,0]+1)*127.5).round().numpy()
        for a,fn in zip(back, want.filename): assert (a==cv2.imread(str(tmp_path/fn), cv2.IMREAD_GRAYSCALE)).all()

def test_datablock_of_a_shuffled_table(shapes, tmp_path):
    df = read_lists(**shapes).sample(frac=1, random_state=0)
    dls = image_block(df, tmp_path, size=8).dataloaders(df, bs=2, num_workers=0)
    for i,o in enumerate(SPLITS): assert pairs(dls[i].items)==sorted(map(tuple, df[df.split==o][['filename','label']].values))
    assert dls[1].items.frame().line.tolist()==df[df.split=='valid'].line.tolist()

def test_extra_columns_in_the_items(shapes, tmp_path):
    df = read_lists(**shapes).assign(modality=lambda o: np.where(o.index%2, 'CT', 'MR'))
    assert image_dls(df, root=tmp_path, size=8, bs=2, num_workers=0).valid.items.frame().modality.tolist()==df[df.split=='valid'].modality.tolist()

def test_epochs_are_shuffled_whole_and_seeded(shapes):
    def orders():
        with no_random(3): dl = image_dls(shapes['train'], shapes['valid'], size=8, bs=4, num_workers=0).train
        return [torch.cat([y for _,y in dl]).tolist() for _ in range(2)]
    a,b = orders()
    assert sorted(a)==sorted(b)==[0]*8+[1]*8 and a!=b and orders()==[a,b]

def test_fit_predict_and_preds_in_the_order_of_the_list(shapes, tmp_path):
    with no_random(0):
        learn = quiet(image_dls(**shapes, size=8, bs=4, num_workers=0))
        learn.fit(1)
    preds,targs = learn.get_preds(ds_idx=2)
    rows = pd.read_csv(shapes['test'])
    assert [learn.dls.vocab[o] for o in targs]==rows.label.tolist()
    for fn,p in zip(rows.filename, preds): torch.testing.assert_close(learn.predict(tmp_path/fn)[2], p.as_subclass(Tensor), check_dtype=False)
    new = learn.dls.test_dl([str(tmp_path/o) for o in rows.filename])
    torch.testing.assert_close(learn.get_preds(dl=new)[0], preds)
    labelled = learn.dls.test_dl(rows.assign(split='test'), with_labels=True)
    assert (learn.get_preds(dl=labelled)[1]==targs).all()

def test_export_is_small_and_loads_in_a_fresh_process(shapes, tmp_path):
    learn = quiet(image_dls(**shapes, size=8, bs=4, num_workers=0, on_error='replace', balanced=True))
    fn,image = tmp_path/'export.pkl',tmp_path/'img/cyst/test0.png'
    learn.export(fn)
    assert b'valid1.png' not in fn.read_bytes()                          # the list stays at home
    code = f"from fastai.vision.all import *; print(*load_learner({str(fn)!r}).predict({str(image)!r})[2].tolist())"
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True).stdout
    assert np.allclose([float(o) for o in out.split()[-2:]], learn.predict(image)[2], atol=1e-5)

def test_show_batch_names_the_classes(shapes):
    image_dls(**shapes, size=8, bs=4, num_workers=0).show_batch(max_n=4)
    assert {o.get_title() for o in plt.gcf().axes}<={'cyst','tear'}; plt.close()

def test_balanced_sample(shapes):
    dls = image_dls(**shapes, size=8, bs=2, n_per_class=3, seed=1, num_workers=0)
    assert dls.counts.loc['tear'].to_dict()==dict(before=8, after=3) and dls.counts.loc['all classes'].tolist()==[16,6]
    same = lambda seed: pairs(image_dls(**shapes, size=8, bs=2, n_per_class=3, seed=seed, num_workers=0).train.items)
    assert same(1)==pairs(dls.train.items)!=same(2)

def test_balanced_sampler(shapes, tmp_path):
    df = read_lists(**shapes)
    df = df[(df.label=='cyst')|(df.split!='train')|df.filename.str.contains('train0')]             # 8 against 1
    dls = image_dls(df, root=tmp_path, size=8, bs=2, balanced=True, num_workers=0)
    with no_random(0): drawn = np.concatenate([dls.train.items.codes[dls.train.get_idxs()] for _ in range(100)])
    assert abs(drawn.mean()-.5)<.06 and len(drawn)==900
    assert list(dls.valid.get_idxs())==list(range(6)) and list(dls.train.new(shuffle=False).get_idxs())==list(range(9))
    assert not np.array_equal(dls.train.get_idxs(), image_dls(df, root=tmp_path, size=8, bs=2, balanced=True, num_workers=0).train.get_idxs())

def test_no_object_a_row():
    "What a worker reads of the list is in arrays that hold no Python objects"
    df = pd.DataFrame(dict(filename=[f'{i}.png' for i in range(1000)], label='x', split='train', list='a', line=range(1000)))
    s = TableItems.create(df).store
    arrays = [s.blob,s.ends,s.codes,s.lines,s.list_codes]
    assert all(isinstance(o, np.ndarray) and o.dtype!=object for o in arrays) and sum(o.nbytes for o in arrays)<40*len(df)
    assert [s.name(i) for i in range(1000)]==df.filename.tolist()

@given(names=st.lists(st.text(st.characters(exclude_characters='\n\r\0/')), min_size=1, max_size=6))
@settings(deadline=None, derandomize=True)
def test_names_come_back_as_they_were(names):
    names = ['a'+o.encode(errors='replace').decode() for o in names]
    items = TableItems.create(pd.DataFrame(dict(filename=names, label='x', split='train')))
    assert [items[i].filename for i in range(len(items))]==names

# --- images that can't be read ------------------------------------------------------------------------------------------------------------

def cut(fn): fn.write_bytes(fn.read_bytes()[:40])

@pytest.mark.parametrize('num_workers', [0,2])
def test_raise_names_file_and_row(shapes, tmp_path, num_workers):
    cut(tmp_path/'img/cyst/train3.png')
    dls = image_dls(**shapes, size=8, bs=4, num_workers=num_workers)
    with pytest.raises(ValueError, match=r'train\.csv, line 5: .*img/cyst/train3\.png'): list(dls.train)
    (tmp_path/'img/cyst/train3.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'train\.csv, line 5: .*img/cyst/train3\.png'): list(dls.train)

@pytest.mark.parametrize('num_workers', [0,2])
def test_skip_takes_another_of_the_class_and_tells_each_epoch(shapes, tmp_path, num_workers):
    for o in ('train0','train3'): cut(tmp_path/f'img/cyst/{o}.png')
    (tmp_path/'img/tear/train7.png').unlink()
    learn = quiet(image_dls(**shapes, size=24, bs=4, num_workers=num_workers, on_error='replace', check_files=False))
    known = {cv2.imread(str(o), 0).tobytes(): o.parent.name for o in (tmp_path/'img').rglob('train*.png') if cv2.imread(str(o), 0) is not None}
    for _ in range(2):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter('default')
            for x,y in learn.dls.train:
                for a,i in zip(((x[:,0].cpu()+1)*127.5).round().numpy().astype(np.uint8), y): assert known[a.tobytes()]==learn.dls.vocab[i]
        told = [str(o.message) for o in told if 'could not be read' in str(o.message)]
        assert len(told)==1 and told[0].startswith('3 of 16 training images')
    assert sorted(learn.dls.train.skipped().filename)==['img/cyst/train0.png','img/cyst/train3.png','img/tear/train7.png']
    with pytest.warns(UserWarning, match='3 of 16'): learn.fit(1)

def test_skip_is_for_training_alone(shapes, tmp_path):
    cut(tmp_path/'img/tear/valid1.png')
    dls = image_dls(**shapes, size=8, bs=4, num_workers=0, on_error='replace')
    with pytest.raises(ValueError, match=r'valid\.csv, line 6'): list(dls.valid)
    assert len(dls.valid.skipped())==0

def test_skip_gives_up_where_all_of_a_class_are_bad(shapes, tmp_path):
    dls = image_dls(**shapes, size=8, bs=4, num_workers=0, on_error='replace')
    for o in (tmp_path/'img/cyst').glob('train*'): cut(o)
    with pytest.raises(ValueError, match='no other image of cyst'): list(dls.train)

def test_skip_when_the_first_image_is_bad(shapes, tmp_path):
    cut(tmp_path/'img/cyst/train0.png')
    assert len(image_dls(**shapes, size=8, bs=4, num_workers=0, on_error='replace').train_ds)==16
    with pytest.raises(ValueError, match='line 2'): image_dls(**shapes, size=8, bs=4, num_workers=0)

# --- the check before the night -----------------------------------------------------------------------------------------------------------

def test_check_finds_each_kind_and_loaders_leave_them_out(shapes, tmp_path, capsys):
    df,img = read_lists(**shapes),tmp_path/'img'
    (img/'cyst/train1.png').unlink(); cut(img/'cyst/train2.png'); (img/'cyst/train3.png').write_text('no image')
    cv2.imwrite(str(img/'cyst/train4.png'), np.full((24,24), 9, np.uint8))
    for a,b in (('cyst/test0','cyst/train5'),('tear/train0','cyst/train6'),('tear/train1','tear/train2')): (img/f'{b}.png').write_bytes((img/f'{a}.png').read_bytes())
    bad = check_images(df, tmp_path, n_workers=2, csv=tmp_path/'bad.csv')
    assert set(zip(bad.filename.str.slice(4), bad.problem))=={('cyst/train1.png','missing'),('cyst/train2.png','unreadable'),('cyst/train3.png','unreadable'),('cyst/train4.png','blank'),
        ('cyst/train5.png','duplicate across splits'),('cyst/train6.png','duplicate across labels'),('tear/train0.png','duplicate across labels'),('tear/train2.png','duplicate')}
    assert pd.read_csv(tmp_path/'bad.csv').values.tolist()==bad.values.tolist()
    assert check_images(df, tmp_path, n_workers=1, progress=False).equals(bad)
    dls = image_dls(**shapes, size=8, bs=2, num_workers=0, exclude=tmp_path/'bad.csv')
    assert [len(o.dataset) for o in dls.loaders]==[8,6,4]
    assert len(check_images(drop_images(df, bad), tmp_path, progress=False))==0
    with pytest.raises(ValueError, match='none of the 1 names'): drop_images(df, pd.DataFrame(dict(filename=['elsewhere.png'])))

# --- RadImageNet --------------------------------------------------------------------------------------------------------------------------

def test_radimagenet_as_released(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'RadiologyAI_train\.csv.*radimagenet\.com'): RadImageNet(tmp_path)
    names = ['radiology_ai/MR/knee/acl/1.png','radiology_ai/CT/lung/nodule/2.png','radiology_ai/US/gb/3.png']
    for i,(fn,o) in enumerate(zip(names, ('train','val','test'))):
        picture(tmp_path/fn.replace('knee', 'Knee'), i)
        write(tmp_path/f'RadiologyAI_{o}.csv', [(fn,'normal')])
    for root in (tmp_path,tmp_path/'radiology_ai'): assert [len(o.dataset) for o in image_dls(**RadImageNet(root).lists, size=8, bs=1, num_workers=0).loaders]==[1,1,1]
    (tmp_path/'RadiologyAI_val.csv').unlink(); shutil.rmtree(tmp_path/'radiology_ai/CT')
    with pytest.raises(FileNotFoundError) as e: RadImageNet(tmp_path)
    assert 'the list RadiologyAI_val.csv; the folder ' in str(e.value) and 'radiology_ai/CT' in str(e.value) and 'train.csv' not in str(e.value)

def test_radimagenet_weights(tmp_path):
    net = create_model('ResNet-50', 5)
    to = dict(conv1='0', bn1='1', layer1='4', layer2='5', layer3='6', layer4='7')
    state = {f"module.backbone.{to[k.split('.')[0]]}.{k.split('.', 1)[1]}": torch.rand_like(v.float()) for k,v in net.state_dict().items() if k.split('.')[0] in to and not k.endswith('tracked')}
    torch.save({'state_dict': {**state, 'backbone.9.bias': torch.zeros(2)}}, tmp_path/'w.pt')
    fc = net.fc.weight.clone()
    report = load_radimagenet(net, tmp_path/'w.pt')
    assert set(report.key[report.of=='file'])=={'backbone.9.bias'} and {'fc.weight','fc.bias'}<=set(report.key[report.of=='network'])
    for k,v in state.items():
        i,rest = k.removeprefix('module.backbone.').split('.', 1)
        assert (net.state_dict()[f'{ {v: k for k,v in to.items()}[i]}.{rest}']==v).all()
    assert (net.fc.weight==fc).all()
    with pytest.raises(ValueError, match='lack'): load_radimagenet(net, {k: v for k,v in state.items() if '.5.' not in k[:18]})
