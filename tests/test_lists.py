"Lists of images, folders, splits, loaders and the check before the night: each sentence that the notebooks say of them, and files that nobody would write."
import csv, io, os, shutil, subprocess, sys, warnings
from functools import partial
import cv2, numpy as np, pandas as pd, pytest, torch
from hypothesis import example, given, settings, strategies as st
from fastai.vision.all import (Flatten, Learner, Resize, CrossEntropyLossFlat, Tensor, TensorImage, Transform, accuracy, aug_transforms, imagenet_stats, nn, no_random,
                               noop, plt)
from fastai.callback.progress import ProgressCallback
from ols_fastai.data.checks import check_images
from ols_fastai.data.tables import *
from ols_fastai.data.splits import *
from ols_fastai.data.lists import *
from ols_fastai.data.folders import *
from ols_fastai.data.files import *
from ols_fastai.data.items import *
from ols_fastai.data.loaders import *
from ols_fastai.data.reading import ReadRow
from ols_fastai.data.transforms import inception_stats
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

def test_spaces_in_names_with_commas(tmp_path):
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

def test_validation_is_drawn_from_training_where_folders_are_train_and_test(tmp_path):
    for i,o in enumerate(f'train/{c}/{c}{j//3}_{j%3}.png' for c in 'ab' for j in range(30)): picture(tmp_path/o, i)
    for i,o in enumerate(['test/a/x_1.png','test/b/y_2.png']): picture(tmp_path/o, 99+i)
    df = read_folder(tmp_path, patient_from='([^_]+)_')
    assert df['split'].value_counts().to_dict()=={'train': 60, 'test': 2}
    new = split_by_group(df)
    assert new.drop(columns='split').equals(df.drop(columns='split')) and new.attrs==df.attrs
    assert (new['split']=='test').equals(df['split']=='test') and (new['split']=='valid').sum()==6
    assert new.groupby('patient')['split'].nunique().max()==1
    shutil.rmtree(tmp_path/'test')
    with pytest.raises(ValueError, match='needs the folders train and valid, or train and test'): read_folder(tmp_path)

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
    with pytest.raises(ValueError, match='all images go to training'): split_by_group(df)
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
    with pytest.raises(ValueError, match='none of the other images of cyst that were tried could be read either'): list(dls.train)

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

# --- one check and one spelling for every table, list and folder ---------------------------------------------------------------------------

@pytest.fixture
def six(tmp_path):
    "A table of six images in `tmp_path`: two classes, four to train on, two to validate"
    for i in range(6): picture(tmp_path/f'{i}.png', i)
    return pd.DataFrame(dict(filename=[f'{i}.png' for i in range(6)], label=['x','y']*3, split=['train']*4+['valid']*2))

def loaders(df, root, **kwargs): return image_dls(df, root=root, size=8, bs=2, num_workers=0, **kwargs)

def said(f):
    "The warnings of a call"
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        f()
    return [str(o.message) for o in ws]

@pytest.mark.parametrize('labels', [[0,1,None,0,0,1], [0,1,float('nan'),0,0,1], ['x','y',None,'x','x','y'], ['x','y','','x','x','y'], ['x','y',' \t','x','x','y'],
    [0,1,pd.NA,0,0,1], pd.Categorical(['x','y',None,'x','x','y']), pd.array([0,1,None,0,0,1], dtype='Int64'), pd.array([True,False,None,True,True,False], dtype='boolean')])
def test_missing_label_names_row_and_file(six, tmp_path, labels):
    df = six.assign(label=labels)
    for call in (lambda: loaders(df, tmp_path), lambda: check_splits(df), lambda: TableItems.create(df), lambda: image_block(df, tmp_path), lambda: find_images(df, tmp_path),
                 lambda: split_by_group(df, 'filename'), lambda: check_images(df, tmp_path, progress=False)):
        with pytest.raises(ValueError, match=r'row 2: empty label of 2\.png'): call()
    with pytest.raises(ValueError, match=r'my\.csv, line 4: empty label of 2\.png'): check_splits(df.assign(list='my.csv', line=range(2, 8)))

@pytest.mark.parametrize('labels,vocab', [([0,1,1,0,0,1], [0,1]), ([0.,1.,1.,0.,0.,1.], [0,1]), ([1,'1',0,'0',1.,0], ['0','1']), ([True,False]*3, [False,True]), (['a','a ',' b','b','a','b'], ['a','b']),
    (['ö','o\u0308','y','y','ö','y'], ['y','ö']), (pd.Categorical(['x','y']*3, categories=['z','y','x']), ['x','y']), ([10,9,10,9,10,9], [9,10]), (pd.array([1,2]*3, dtype='Int64'), [1,2])])
def test_labels_of_every_kind(six, tmp_path, labels, vocab):
    dls = loaders(six.assign(label=labels), tmp_path)
    assert list(dls.vocab)==vocab and [type(o) for o in dls.vocab]==[type(o) for o in vocab]
    assert dls.counts.loc['all classes','after']==4 and set(dls.counts.index)=={*vocab,'all classes'}
    y = [int(y) for _,y in dls.train_ds]
    assert [dls.vocab[o] for o in y]==dls.train.items.frame().label.tolist() and len(dls.train.one_batch()[1])==2

@pytest.mark.parametrize('label', [['x','y'], pd.Timestamp(0), ('x',), b'x', {'x'}])
def test_label_that_is_no_class(six, tmp_path, label):
    with pytest.raises(ValueError, match=r'row 1: the label .* of 1\.png is of type \w+: a class is text'):
        loaders(six.assign(label=pd.Series(['x',label,'x','y','x','y'], dtype=object)), tmp_path)

@pytest.mark.parametrize('name', ['./0.png', 'a/../0.png', './/0.png', 'a\\..\\0.png', '.\\0.png', ' 0.png', __import__('pathlib').Path('0.png'), __import__('pathlib').Path('a/../0.png')])
def test_one_file_of_many_names_in_two_splits(six, tmp_path, name):
    df = six.assign(filename=['0.png','1.png','2.png','3.png',name,'5.png'])
    for kwargs in (dict(), dict(check_files=False)):
        with pytest.raises(ValueError, match=r'0\.png is in train and in valid'): loaders(df, tmp_path, **kwargs)
    assert len(loaders(df, tmp_path, allow_overlap='file').valid_ds)==2

def test_unicode_form_of_file_names(six, tmp_path):
    composed,parts = 'Ödem.png','O\u0308dem.png'
    picture(tmp_path/parts, 7)
    df = six.assign(filename=[composed,*six.filename[1:]])
    dls = loaders(df, tmp_path)
    assert dls.train.items[0].filename==parts and dls.train_ds[0][0].shape==(24,24)
    with pytest.raises(ValueError, match='is in train and in valid'): check_splits(df.assign(filename=[composed,'1.png','2.png','3.png',parts,'5.png']))

@pytest.mark.parametrize('name,says', [(None,'empty filename'), ('','empty filename'), (' ','empty filename'), (float('nan'),'empty filename'), (pd.NA,'empty filename'), (3,'is of type int'), (b'3.png','is of type bytes'),
    ('../3.png','leads out'), ('a/../../3.png','leads out'), ('.','leads out'), ('3\n.png','line break')])
def test_names_that_are_none(six, tmp_path, name, says):
    df = six.assign(filename=pd.Series(['0.png','1.png','2.png',name,'4.png','5.png'], dtype=object))
    for call in (lambda: loaders(df, tmp_path), lambda: check_splits(df), lambda: TableItems.create(df)):
        with pytest.raises(ValueError, match=f'row 3: .*{says}'): call()

def test_columns_that_leave_open_which_is_meant(six, tmp_path):
    with pytest.raises(ValueError, match="2 columns 'label'"): loaders(pd.concat([six, six[['label']]], axis=1), tmp_path)
    with pytest.raises(ValueError, match="no column 'filename'"): loaders(six.rename(columns={'filename':'name'}), tmp_path)
    with pytest.raises(ValueError, match="no column 'filename'"): loaders(six.set_axis([0,1,2], axis=1), tmp_path)
    with pytest.raises(ValueError, match='no rows'): loaders(six[:0], tmp_path)

def test_table_from_paths_and_columns_called_anything(six, tmp_path):
    names = ['frame','items','index','list','line','iloc','values','store','where','name','dtype','shape','T','vocab','codes',7,None]
    df = six.copy()
    for i,o in enumerate(names): df[o] = range(i, i+6)
    df['nested'] = [[i] for i in range(6)]
    dls = loaders(df, tmp_path)
    back = dls.valid.items.frame()
    for o in [*names,'nested']: assert back[o].tolist()==df[o][4:].tolist(), o
    assert loader_table(dls.valid).equals(back)
    test_dl = dls.test_dl(df, with_labels=True)
    assert loader_table(test_dl).equals(df) and torch.cat([y for _,y in test_dl]).tolist()==[0,1]*3
    assert len(check_images(df, tmp_path, progress=False))==0 and len(split_by_group(df, 'filename'))==6

same_patient = [7, 7., '7', '7.0', ' 7', '7.00', np.int64(7), np.float32(7), '7\u200b', '\ufeff7']
@pytest.mark.parametrize('a', same_patient)
@pytest.mark.parametrize('b', ['7', 7.])
def test_one_patient_of_many_spellings(six, a, b):
    df = six.assign(patient=pd.Series([a,8,9,'A',b,'B'], dtype=object))
    with pytest.raises(ValueError, match='patient 7 is in train and in valid'): check_splits(df)
    with pytest.raises(ValueError, match='patient 7 is in train and in valid'): check_splits(df.assign(patient=df.patient.astype('category')))
    with pytest.raises(ValueError, match='who 7 is in train and in valid'): check_splits(df.rename(columns={'patient':'who'}), patient='who')
    s = split_by_group(df.drop(columns='split'), valid=.34, test=0)
    assert s['split'][0]==s['split'][4] and split_counts(s).patients.sum()==5

@pytest.mark.parametrize('missing', [None, float('nan'), pd.NA, pd.NaT, '', ' \t', 'nan', '<NA>'])
def test_missing_patient_is_nobody(six, tmp_path, missing):
    df = six.assign(patient=pd.Series([1,2,missing,missing,missing,5], dtype=object))
    assert not said(lambda: check_splits(df))
    assert loaders(df, tmp_path).valid.items.frame().patient.tolist()==['','5'] and split_counts(df).patients.tolist()==[2,1]
    with pytest.raises(ValueError, match='patient 5 is in train and in valid'): check_splits(df.assign(patient=pd.Series([5,2,missing,missing,missing,5], dtype=object)))
    with pytest.raises(ValueError, match=r'row 2: 2\.png has no patient'): split_by_group(df.drop(columns='split'))

def test_patient_that_pandas_wrote_in_two_ways(tmp_path):
    pd.DataFrame(dict(filename=['0.png','1.png'], label=['x','y'], patient=[7,8])).to_csv(tmp_path/'t.csv', index=False)
    pd.DataFrame(dict(filename=['2.png','3.png'], label=['x','y'], patient=[7,None])).to_csv(tmp_path/'v.csv', index=False)
    with pytest.raises(ValueError, match='patient 7 is in train and in valid'): read_lists(tmp_path/'t.csv', tmp_path/'v.csv')
    assert read_lists(tmp_path/'t.csv', tmp_path/'v.csv', allow_overlap='patient').patient.tolist()==['7','8','7','']

@pytest.mark.parametrize('a,b', [('007','7'), ('P07','P7'), ('p7','P7'), ('Ann Lee','AnnLee'), ('７','7')])
def test_patients_that_may_be_one_are_said(six, a, b):
    two = said(lambda: check_splits(six.assign(patient=[a,'x','y','z',b,'u'])))
    assert len(two)==1 and f'patient {a!a} and patient {b!a} are in train and in valid' in two[0]
    assert not said(lambda: check_splits(six.assign(patient=[a,b,'y','z','w','u'])))      # together they do no harm

@pytest.mark.parametrize('a,b,how', [('x','X','upper and lower case'), ('x','x\u200b','spaces, invisible'), ('left knee','left  knee','spaces, invisible'), ('left knee','left\u00a0knee','spaces, invisible'),
    ('1','1.0','spaces, invisible'), ('01','1','spaces, invisible'), ('ﬁbroma','fibroma','')])
def test_classes_that_may_be_one_are_said(six, a, b, how):
    two = said(lambda: check_splits(six.assign(label=[a,b,a,b,a,b])))
    assert len(two)==1 and 'are two classes, which differ in '+how in two[0], two

def test_missing_labels_that_were_turned_into_text_are_said(six):
    ws = said(lambda: check_splits(six.assign(label=[str(o) for o in ('x','y',None,'x','x','y')])))
    assert len(ws)==2 and "the class 'None' of 1 images has the name of a missing label" in ws[0]

def test_labels_are_one_in_lists_too(tmp_path):
    a,v = write(tmp_path/'a.csv', [('1.png','Ödem'),('2.png','x ')]),write(tmp_path/'v.csv', [('3.png','O\u0308dem'),('4.png',' x')])
    assert read_lists(a, v).label.nunique()==2

def test_classes_without_images_in_validation_or_test_are_said_once(shapes, tmp_path):
    v = write(tmp_path/'v.csv', [('img/cyst/valid0.png','cyst')])
    ws = said(lambda: image_dls(shapes['train'], v, shapes['test'], size=8, bs=2, num_workers=0))
    assert ws==["valid has no image of 1 of 2 classes: 'tear'; its figures are silent about them"]

def test_sample_of_a_table_with_a_duplicate_index(six, tmp_path):
    df = six.set_axis([0,0,1,1,2,2])
    assert len(loaders(df, tmp_path, n_per_class=1).train_ds)==2
    assert sample_per_class(df, 1, seed=3).filename.tolist()==sample_per_class(six, 1, seed=3).filename.tolist()

# --- files and folders of every name --------------------------------------------------------------------------------------------------------

def test_names_that_are_not_utf8(tmp_path):
    "From the folder through the loaders and the check to what is left out"
    raw = os.fsencode(tmp_path)+b'/%s/b\xe4r%d.png'
    for i in range(6):
        picture(tmp_path/f'{"ab"[i%2]}/{i}.png', i)
        os.rename(tmp_path/f'{"ab"[i%2]}/{i}.png', raw%(b'ab'[i%2:i%2+1], i))
    df = read_folder(tmp_path).assign(split=['train','train','valid']*2)
    dls = loaders(df, tmp_path)
    assert '\udce4' in dls.train.items[0].filename and len(list(dls.valid))==1 and dls.train.items.frame().filename.tolist()==df.filename[df.split=='train'].tolist()
    assert len(check_images(df, tmp_path, progress=False))==0
    df[:1].to_csv(tmp_path/'bad.csv', index=False, errors='surrogateescape')
    assert drop_images(df, tmp_path/'bad.csv').filename.tolist()==df.filename[1:].tolist()

def test_what_is_passed_over_in_a_folder_is_counted(tmp_path):
    for i,o in enumerate(['a/1.png','a/.@__thumb/1.png','@eaDir/a/1.png','b/@eaDir/2.png','b/2.jfif.png','__MACOSX/a/1.png','a/._1.png','b/sub/3.webp','#recycle/4.png']): picture(tmp_path/o, i)
    (tmp_path/'b/2.jfif.png').rename(tmp_path/'b/2.jfif')
    for o in ('a/scan.nii.gz','a/Thumbs.db','a/notes.txt','b/report','b/x.heic'): (tmp_path/o).touch()
    ws = said(lambda: got.extend(read_folder(tmp_path).filename)) if (got := []) is not None else None
    assert got==['a/1.png','b/2.jfif','b/sub/3.webp'] and len(ws)==1
    for o in ('2 images in @eaDir','1 images in .@__thumb','1 images in __MACOSX','1 images in #recycle','1 hidden images','1 files .gz','1 files .heic','1 files without a suffix'): assert o in ws[0], (o, ws)
    assert '.db' not in ws[0] and '.txt' not in ws[0]

def test_dicom_of_any_name(tmp_path):
    pytest.importorskip('pydicom')
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian
    meta = FileMetaDataset(); meta.TransferSyntaxUID = ExplicitVRLittleEndian; meta.MediaStorageSOPClassUID = '1.2'; meta.MediaStorageSOPInstanceUID = '1.2.3'
    for i,o in enumerate(['IM0001','1.2.840.113619.2','x.dcm','x.DICOM']):
        ds = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        ds.Rows = ds.Columns = 8; ds.BitsAllocated = ds.BitsStored = 8; ds.HighBit = 7; ds.PixelRepresentation = 0; ds.SamplesPerPixel = 1; ds.PhotometricInterpretation = 'MONOCHROME2'
        ds.PixelData = bytes(range(i, i+64))
        (tmp_path/'ab'[i%2]).mkdir(exist_ok=True)
        ds.save_as(tmp_path/'ab'[i%2]/o)
    for o in ('DICOMDIR','a/DICOMDIR'): (tmp_path/o).write_bytes(bytes(128)+b'DICM')   # a disc's table of contents
    df = read_folder(tmp_path)
    assert df.filename.tolist()==['a/IM0001','a/x.dcm','b/1.2.840.113619.2','b/x.DICOM']
    dls = loaders(df.assign(split=['train','valid']*2), tmp_path)
    assert dls.train.one_batch()[0].shape==(2,3,8,8)

def test_folders_through_links_each_once(tmp_path):
    picture(tmp_path/'all/1.png', 1); picture(tmp_path/'tree/b/2.png', 2)
    (tmp_path/'tree/a').mkdir(); (tmp_path/'tree/a/linked').symlink_to('../../all'); (tmp_path/'tree/a/loop').symlink_to('.')
    assert read_folder(tmp_path/'tree').filename.tolist()==['a/linked/1.png','b/2.png']

def test_linked_files_are_one(tmp_path):
    for i in range(4): picture(tmp_path/f'all/{i}.png', i)
    for split,k in (('train',0),('train',1),('valid',1),('valid',2)):
        (tmp_path/f'tree/{split}/a').mkdir(parents=True, exist_ok=True); (tmp_path/f'tree/{split}/a/{split}{k}.png').symlink_to(tmp_path/f'all/{k}.png')
    df = read_folder(tmp_path/'tree')
    with pytest.raises(ValueError, match='is in train and in valid'): loaders(df, tmp_path/'tree')
    assert len(loaders(df, tmp_path/'tree', allow_overlap='file').valid_ds)==2

def test_names_without_their_suffix(six, tmp_path):
    df = six.assign(filename=six.filename.str.removesuffix('.png'))
    (tmp_path/'0.txt').touch()
    assert loaders(df, tmp_path).train.items.frame().filename.tolist()==six.filename[:4].tolist()
    picture(tmp_path/'1.jpg', 1)
    with pytest.raises(ValueError, match=r'ambiguous: 1 may be 1\.jpg or 1\.png'): loaders(df, tmp_path)
    (tmp_path/'1.jpg').unlink()
    with pytest.raises(FileNotFoundError, match=r'the first is 3\.jpg; there is 3\.png: is its suffix right\?'): loaders(six.assign(filename=six.filename.str.replace('3.png','3.jpg')), tmp_path)
    with pytest.raises(FileNotFoundError, match=r'there is no folder sub'): loaders(six.assign(filename=[*six.filename[:5],'sub/5.png']), tmp_path)

@pytest.mark.parametrize('respell', [str.upper, lambda o: o+'x', lambda o: o.replace('.png', ''), lambda o: o.replace('/', '\\')])
def test_names_are_looked_up_in_linear_time(tmp_path, monkeypatch, respell):
    "Work grows as the number of names: each folder is listed once, each name on disk is folded once"
    import ols_fastai.data.files as files
    counts = []
    for n in (100,400):
        folder = tmp_path/f'{n}/d'; folder.mkdir(parents=True)
        for i in range(n): (folder/f'{i}.png').touch()
        count = dict(scandir=0, fold=0)
        def counted(name, f, key):
            def run(*args): count[key] += 1; return f(*args)
            monkeypatch.setattr(*name, run)
        counted((os,'scandir'), os.scandir, 'scandir'); counted((files,'_folded'), files._folded, 'fold')
        df = pd.DataFrame(dict(filename=[respell(f'd/{i}.png') for i in range(n)], label='x'))
        try: files.find_images(df, tmp_path/str(n))
        except FileNotFoundError: pass
        monkeypatch.undo()
        counts.append(count)
    assert counts[0]['scandir']<=3 and counts[1]['scandir']==counts[0]['scandir'] and counts[1]['fold']<=4*counts[0]['fold']+8

def test_check_images_lists_each_folder_once(tmp_path, monkeypatch):
    for i in range(4): picture(tmp_path/f'd/{i}.png', i)
    df = pd.DataFrame(dict(filename=[f'd/{i}.png' for i in range(60)], label='x', split='train'))
    listed,scandir = [],os.scandir
    monkeypatch.setattr(os, 'scandir', lambda path: listed.append(str(path)) or scandir(path))
    assert (check_images(df, tmp_path, n_workers=1, progress=False).problem=='missing').sum()==56
    assert listed.count(str(tmp_path/'d'))==1

# --- encodings --------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('encoding', ['cp1252','latin-1','utf-16','utf-8'])
def test_lists_in_other_encodings(tmp_path, encoding):
    for o,n in (('t','1.png'),('v','2.png')): (tmp_path/f'{o}.csv').write_text(f'filename,label\n{n},Ödem\n', encoding=encoding)
    assert read_lists(tmp_path/'t.csv', tmp_path/'v.csv', encoding=encoding).label.tolist()==['Ödem']*2
    assert image_table(tmp_path/'t.csv', tmp_path/'v.csv', encoding=encoding, check_files=False, root=picture(tmp_path/'1.png') or tmp_path)[0].label.tolist()==['Ödem']*2

def test_wrong_encoding_is_named(tmp_path):
    fn = tmp_path/'a.csv'
    fn.write_text('filename,label\n1.png,x\n2.png,Ödem\n', encoding='cp1252')
    with pytest.raises(ValueError, match=r"a\.csv, line 3: not in UTF-8 \(byte 0xd6\)\. Give encoding='cp1252'.*CSV UTF-8"): read_list(fn)
    with pytest.raises(ValueError, match="no encoding 'windows'"): read_list(fn, encoding='windows')
    fn.write_text('filename,label\n1.png,x\n', encoding='utf-16')
    with pytest.raises(ValueError, match="encoding='utf-16'"): read_list(fn)
    fn.write_text('filename,label\n1.png,Ödem\n')
    with pytest.raises(ValueError, match=r'a\.csv.*not in UTF-16'): read_list(fn, encoding='utf-16')
    assert any('is valid UTF-8' in o for o in said(lambda: read_list(fn, encoding='cp1252')))

# --- splits -----------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('valid,test', [(.2,.3), (.4,0), (.1,.1), (.05,.15), (.3,.3)])
@pytest.mark.parametrize('kind', range(3))
def test_split_has_the_shares_asked_for(valid, test, kind):
    "Within two patients of mean size, of all images; of each class near enough"
    rng = np.random.default_rng(kind)
    sizes = [np.full(500, 4), rng.integers(1, 9, 300), rng.geometric(.2, 300)][kind]
    patients = np.repeat(np.arange(len(sizes)), sizes)
    labels = [np.arange(len(patients))%2, rng.integers(0, 5, len(sizes))[patients], np.minimum(rng.geometric(.5, len(patients)), 4)][kind]
    df = pd.DataFrame(dict(filename=[f'{i}.png' for i in range(len(patients))], label=labels, patient=patients))
    s = None
    assert not said(lambda: split_by_group(df, valid=valid, test=test))
    s = split_by_group(df, valid=valid, test=test, seed=1)
    want = pd.Series(dict(train=1-valid-test, valid=valid, test=test))
    got = s['split'].value_counts().reindex(SPLITS, fill_value=0)
    assert (got-want*len(df)).abs().max()<=2*sizes.mean()
    of_class = pd.crosstab(s.label, s['split']).reindex(columns=SPLITS, fill_value=0)
    assert (of_class - np.outer(of_class.sum(1), want)).abs().max(axis=None)<=4*sizes.mean()
    assert s.groupby('patient')['split'].nunique().max()==1 and s.drop(columns='split').equals(df)
    assert not split_by_group(df, valid=valid, test=test, seed=2)['split'].equals(s['split'])

def test_a_split_that_is_none_is_refused():
    "All three views hold a class of their own, which must stay in training"
    df = pd.DataFrame(dict(filename=[f'{i}.png' for i in range(30)], label=[*'aaabbbccc',*'abc'*7], patient=[*'xxxyyyzzz',*'xyz'*7]))
    with pytest.raises(ValueError, match='by whole patients, of which there are 3, all images go to training.*does the column, or the pattern, tell one patient from another'): split_by_group(df)

def test_split_that_can_not_be_had_is_said():
    df = pd.DataFrame(dict(filename=[f'{i}.png' for i in range(100)], label=['a','b']*50, patient=['A']*60+['B']*20+['C']*20))
    ws = said(lambda: out.append(split_by_group(df, valid=.4, test=.1))) if (out := []) is not None else None
    assert len(ws)==1 and '60.0% of the images for train instead of 50.0%' in ws[0]
    assert out[0].groupby('patient')['split'].nunique().max()==1

@pytest.mark.parametrize('seed', range(8))
def test_split_keeps_whole_patients_of_a_rare_class_in_training(seed):
    "The patient with all images of a class has others too: they go with it"
    rng = np.random.default_rng(seed)
    df = pd.DataFrame(dict(filename=[f'{i}.png' for i in range(60)], patient=rng.integers(0, 12, 60), label='common'))
    for p in range(3): df.loc[df.index[df.patient==p][:1],'label'] = f'rare{p}'
    s = split_by_group(df, valid=.3, test=.3, seed=seed)
    assert set(s.label)==set(s.label[s['split']=='train']) and s.groupby('patient')['split'].nunique().max()==1

# --- patients from names ------------------------------------------------------------------------------------------------------------------------

def test_patients_from_names(tmp_path):
    for i,o in enumerate(['a/13_1.png','a/14_1.png','b/13_2.png','b/15_1.png']): picture(tmp_path/o, i)
    df = read_folder(tmp_path, patient_from=r'(\d+)_')
    assert df.patient.tolist()==['13','14','13','15'] and read_folder(tmp_path, patient_from=r'^\w/').patient.tolist()==['a/','a/','b/','b/']
    s = split_by_group(df, valid=.3, test=0)
    assert s['split'][0]==s['split'][2]
    many = pd.DataFrame(dict(filename=[f'c/p{i//2:02d}_{i%2}.png' for i in range(40)], label='c'))
    with pytest.warns(UserWarning, match=r'each of the 40 images a patient of its own \(p00_0 is that of c/p00_0.png\)'): patients_from_names(many, r'(p\d+_\d)')
    with warnings.catch_warnings(): warnings.simplefilter('error'); assert patients_from_names(many, r'(p\d+)_').patient.nunique()==20
    a,v = write(tmp_path/'t.csv', [('a/13_1.png','a'),('b/15_1.png','b')]),write(tmp_path/'v.csv', [('a/14_1.png','a'),('b/13_2.png','b')])
    for call in (lambda: read_lists(a, v, patient_from=r'(\d+)_'), lambda: image_dls(a, v, size=8, bs=1, num_workers=0, patient_from=r'(\d+)_'),
                 lambda: loaders(read_lists(a, v), tmp_path, patient_from=r'(\d+)_')):
        with pytest.raises(ValueError, match='patient 13 is in train and in valid'): call()
    with pytest.raises(ValueError, match=r'a/13_1\.png|13_1\.png, and there are 3 more'): read_folder(tmp_path, patient_from='P(.*)_')
    with pytest.raises(ValueError, match='no regular expression'): read_folder(tmp_path, patient_from='(')

# --- workers and what is drawn --------------------------------------------------------------------------------------------------------------------

def epochs(lists, num_workers, n=2, **kwargs):
    "Batches of `n` epochs"
    with no_random(5): dl = image_dls(**lists, size=12, bs=4, num_workers=num_workers, **kwargs).train
    return [torch.stack([x for x,_ in dl]) for _ in range(n)]

def test_transforms_in_the_wrong_place_are_told_where_they_belong(shapes):
    "Flip has a size, and does not resize"
    for kwargs in (dict(size=8), dict()):
        with pytest.raises(ValueError, match='Flip acts on batches: give it as batch_tfms'): image_dls(**shapes, bs=4, item_tfms=aug_transforms(), **kwargs)
    with pytest.raises(ValueError, match="size can't be had with Resize in item_tfms"): image_dls(**shapes, bs=4, item_tfms=Resize(9), size=8)

def test_workers_do_not_change_what_is_drawn(shapes):
    runs = [epochs(shapes, o, crop=.5, flip=True) for o in (0,1,2)]
    for other in runs[1:]:
        for a,b in zip(runs[0], other): assert torch.equal(a, b)
    plain = epochs(shapes, 0)
    assert not torch.equal(runs[0][0], plain[0]) and not torch.equal(runs[0][0].flatten().sort()[0], runs[0][1].flatten().sort()[0])   # cut anew in each epoch

class Same(Transform):
    "Does nothing, so that batches are put together in bytes and made floats as a whole"
    def encodes(self, x:TensorImage): return x

@pytest.mark.parametrize('stats,channels', [(inception_stats,3), (imagenet_stats,3), (([.4],[.3]),1)])
@pytest.mark.parametrize('num_workers', [0,2])
def test_floats_are_the_same_wherever_they_are_made(tmp_path, stats, channels, num_workers):
    "Image by image, where only their values change, or batch by batch; for grey, colour and 16 bits"
    rng = np.random.default_rng(0)
    for i in range(30):
        a = rng.integers(0, 256, (20,20,3)[:2+i%2]).astype(np.uint8)
        assert cv2.imwrite(str(tmp_path/f'{i}.png'), a.astype(np.uint16)*257+3 if i%3==2 else a)
    df = pd.DataFrame(dict(filename=[f'{i}.png' for i in range(30)], label=['a','b']*15, split=['train']*21+['valid']*9))
    def batches(**kwargs):
        with no_random(5): dls = image_dls(df, root=tmp_path, bs=4, size=12, flip=True, stats=stats, channels=channels, num_workers=num_workers, **kwargs)
        return [x for dl in dls.loaders for x,_ in dl]     # held until all have come
    for a,b in zip(batches(), batches(batch_tfms=Same()), strict=True): assert a.shape[1]==channels and torch.equal(a, b)

@pytest.mark.parametrize('num_workers', [0,2])
def test_transforms_of_batches_get_the_channels_of_the_network(shapes, num_workers):
    "Grey images too, each in memory of its own, for a transform may write to them"
    seen = set()
    class Look(Transform):
        def encodes(self, x:TensorImage): seen.add((x.shape[1],x.is_contiguous())); return x
    for x,_ in image_dls(**shapes, size=12, bs=4, num_workers=num_workers, batch_tfms=Look()).train: assert x.shape[1]==3
    assert seen=={(3,True)}

def test_workers_do_not_change_which_image_stands_in(shapes, tmp_path):
    for o in ('train0','train3'): cut(tmp_path/f'img/cyst/{o}.png')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        a,b,c = (epochs(shapes, o, n=3, on_error='replace') for o in (0,1,2))
    for x,y,z in zip(a, b, c): assert torch.equal(x, y) and torch.equal(x, z)

def decoded(monkeypatch):
    "Names of the files that are read from now on"
    names,read = [],ReadRow.read
    monkeypatch.setattr(ReadRow, 'read', lambda self, row: names.append(row.filename) or read(self, row))
    return names

@pytest.mark.parametrize('size', [12,(6,20)])
def test_a_cache_changes_no_batch(shapes, tmp_path, monkeypatch, size):
    "Nor do threads, and images of training without windows; a second training decodes nothing"
    def batches(n, **kwargs):
        with no_random(5): dls = image_dls(**shapes, size=size, bs=4, num_workers=n, crop=.5, flip=True, **kwargs)
        names = decoded(monkeypatch)
        out = [x for _ in range(2) for dl in dls.loaders for x,_ in dl]
        n_read = len(names)
        whole = dls.train.new(shuffle=False, drop_last=False)
        with whole.dataset.set_split_idx(1): return [*out, *(x for x,_ in whole)],n_read
    want,_ = batches(0)
    for n,most in ((2,26),(4,0)):
        got,n_read = batches(n, cache=tmp_path/'cache')
        assert n_read==most
        for a,b in zip(got, want, strict=True): assert torch.equal(a, b)

def test_a_cache_that_is_damaged_or_outdated(shapes, tmp_path, monkeypatch):
    dls = partial(image_dls, **shapes, size=12, bs=4, num_workers=0, cache=tmp_path/'cache')
    want = [x for x,_ in dls().valid]
    images, = (tmp_path/'cache').glob('*/images.bin')
    data = bytearray(images.read_bytes())
    slot = len(data)//26
    for i in (17,18): data[i*slot] ^= 255             # of validation, as after a loss of power
    images.write_bytes(data)
    again = dls(); names = decoded(monkeypatch)
    assert all(torch.equal(a, b) for a,b in zip(want, [x for x,_ in again.valid])) and names==['img/cyst/valid1.png','img/cyst/valid2.png']
    picture(tmp_path/'img/cyst/valid1.png', 99)
    with pytest.raises(ValueError, match=r'cyst/valid1\.png has changed since it was put into the cache: remove .*cache'): list(dls().valid)

def test_a_stand_in_is_not_kept_as_the_image(shapes, tmp_path):
    fn = tmp_path/'img/cyst/train0.png'
    whole = fn.read_bytes()
    cut(fn)
    dls = partial(image_dls, **shapes, size=12, bs=4, num_workers=0, cache=tmp_path/'cache', on_error='replace')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        list(dls().train)
    fn.write_bytes(whole)
    def first_image(**kwargs): return {tuple(x.flatten().tolist()) for xs,_ in image_dls(**shapes, size=12, bs=4, num_workers=0, **kwargs).train for x in xs}
    assert first_image(cache=tmp_path/'cache')==first_image()

def test_a_cache_needs_room_and_our_own_resize(shapes, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='leave out item_tfms'): image_dls(**shapes, bs=4, item_tfms=Resize(12), cache=tmp_path/'cache')
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda o: usage._replace(free=3000))
    with pytest.raises(OSError, match=r'the cache of 26 images takes 3.74 kB more at least, and 3 kB are free'): image_dls(**shapes, size=12, bs=4, cache=tmp_path/'cache')

def test_what_is_drawn_leaves_the_generators_alone(shapes):
    "With and without crops, the order of images and what the program draws beside it are the same"
    def drawn(**kwargs):
        with no_random(5):
            dl = image_dls(**shapes, size=12, bs=4, num_workers=0, **kwargs).train
            y = [torch.cat([y for _,y in dl]) for _ in range(2)]
            return torch.stack(y).tolist(),__import__('random').random(),np.random.rand(),torch.rand(1).item()
    assert drawn()==drawn(crop=.5, flip=True)

def reader(dls): return next(o for o in dls.train_ds.tls[0].tfms.fs if isinstance(o, ReadRow))

def test_others_of_a_bad_image(shapes, tmp_path, monkeypatch):
    "Those tried are of its class and not known to be bad, each once; at most ten"
    dls = image_dls(**shapes, size=8, bs=4, num_workers=0, on_error='replace')
    read,items = reader(dls),dls.train.items
    bad = [o for o in range(16) if items[o].label=='cyst']
    tried = []
    def no_image(fn): tried.append(str(fn)); raise ValueError(f'{fn} is damaged')
    monkeypatch.setattr(read, 'reads', [no_image])
    items.store.bad[bad[1]] = 2
    with pytest.raises(ValueError, match='none of the other images of cyst that were tried could be read either'): read(items[bad[0]], split_idx=0)
    assert len(tried)==len(set(tried))==7 and all('cyst/train' in o for o in tried) and not any(items[bad[1]].filename in o for o in tried)
    assert items.store.bad[bad].tolist()==[1,2]+[1]*6 and not items.store.bad[[o for o in range(16) if o not in bad]].any()

def test_at_most_ten_others_are_tried(tmp_path, monkeypatch):
    for i in range(16): picture(tmp_path/f'{i}.png', i)
    df = pd.DataFrame(dict(filename=[f'{i}.png' for i in range(16)], label='x', split=['train']*15+['valid']))
    dls = loaders(df, tmp_path, on_error='replace')
    read,tried = reader(dls),[]
    def no_image(fn): tried.append(fn); raise ValueError('damaged')
    monkeypatch.setattr(read, 'reads', [no_image])
    with pytest.raises(ValueError): read(dls.train.items[0], split_idx=0)
    assert len(tried)==11

def test_a_missing_image_is_named_wherever_it_is_asked_for(shapes, tmp_path):
    dls = image_dls(**shapes, size=8, bs=2, num_workers=0)
    (tmp_path/'img/cyst/valid1.png').unlink()
    for call in (lambda: dls.valid_ds[1], lambda: list(dls.valid), lambda: dls.valid.dataset.tls[0][1]):
        with pytest.raises(FileNotFoundError, match=r'valid\.csv, line 3: .*img/cyst/valid1\.png'): call()

# --- BrainRegions in several processes ---------------------------------------------------------------------------------------------------------

def test_brain_regions_that_another_process_finished_first(tmp_path, monkeypatch):
    import json
    import ols_fastai.data.datasets as datasets
    def other_process(args):
        def write_regions(part, n, size, seed):
            (part/'train.csv').write_text('mine')
            (tmp_path/'d').mkdir(); (tmp_path/'d/train.csv').write_text('theirs')
            (tmp_path/'d/made_with.json').write_text(json.dumps(args))
        return write_regions
    args = dict(n_train=4, n_valid=1, n_test=2, size=40, seed=42)
    monkeypatch.setattr(datasets, '_write_regions', other_process(args))
    assert datasets.brain_regions(tmp_path/'d', n_train=4, n_valid=1, n_test=2)==tmp_path/'d'
    assert (tmp_path/'d/train.csv').read_text()=='theirs' and [o.name for o in tmp_path.iterdir()]==['d']
    shutil.rmtree(tmp_path/'d')
    monkeypatch.setattr(datasets, '_write_regions', other_process({**args, 'seed':1}))
    with pytest.raises(ValueError, match='choose another folder'): datasets.brain_regions(tmp_path/'d', n_train=4, n_valid=1, n_test=2)
    shutil.rmtree(tmp_path/'d')
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(datasets, '_write_regions', full)
    with pytest.raises(OSError, match='No space left'): datasets.brain_regions(tmp_path/'d')
    assert not list(tmp_path.iterdir())

def test_patients_of_another_name_are_patients_to_all_that_follows(six, tmp_path):
    for o in six.filename: cv2.imwrite(str(tmp_path/o), np.random.default_rng(len(o)).integers(0, 255, (9,9), np.uint8))
    df,_ = image_table(six.assign(mrn=[7.,8,9,10,11,12]), root=tmp_path, patient='mrn')
    assert list(df.patient)==list('789')+['10','11','12']
    df,_ = image_table(six.assign(mrn=range(6), patient=list('uvwxyz')), root=tmp_path, patient='mrn')
    assert list(df.patient)==list('uvwxyz')   # a column of that name stays

def test_one_picture_of_two_patients_is_said(six, tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (9,9), np.uint8)
    df = six.assign(split='train', label='a', patient=list('pqrstu'))
    for i,o in enumerate(df.filename): cv2.imwrite(str(tmp_path/o), picture if i in (1,4) else picture+i+1)
    bad = check_images(df, tmp_path, progress=False)
    assert bad.problem.tolist()==['duplicate across patients'] and bad.detail[0].endswith('(train, a, patient q)')
    bad = check_images(df.assign(patient='p'), tmp_path, progress=False)
    assert bad.problem.tolist()==['duplicate'] and bad.detail[0].endswith('(train, a, patient p)')

def test_the_column_that_is_missing_is_named_and_not_its_neighbour(tmp_path):
    fn = tmp_path/'a.csv'
    for sep in ',;\t':
        fn.write_text(sep.join(['path','Diagnosis','age'])+'\n'+sep.join(['1.png','cyst','7'])+'\n')
        with pytest.raises(ValueError, match=r"no column 'diagnosis': its columns are 'path', 'Diagnosis', 'age' .is it 'Diagnosis'"):
            read_list(fn, filename='path', label='diagnosis')

def test_a_pattern_that_merges_patients_is_said(recwarn):
    df = pd.DataFrame(dict(filename=[f'PAT{2000+i}_0.png' for i in range(40)], label=['a','b']*20))
    assert patients_from_names(df, r'(PAT\d+)_').patient.nunique()==40
    recwarn.clear()
    assert patients_from_names(df, r'(PAT\d\d\d)').patient.nunique()==4
    assert 'finds 4 patients, 4 of whom have images of several classes' in str(recwarn.pop(UserWarning).message)
    folders = df.assign(filename=[f'{o}/{o}{i//2:02}/view{i%2}.png' for i,o in enumerate(df.label)])
    assert patients_from_names(folders, r'([^/]+)/[^/]+$').patient.tolist()==[f'{o}{i//2:02}' for i,o in enumerate(df.label)]
    recwarn.clear()
    some = folders.assign(filename=[o if i else 'a/a99/view0.png' for i,o in enumerate(folders.filename)])
    assert patients_from_names(some, r'(\d+)/').patient.nunique()==21   # one is of one class
    assert 'finds 21 patients, 19 of whom have' in str(recwarn.pop(UserWarning).message)
