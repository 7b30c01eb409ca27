"Image files: every format right, damaged ones an error that names the file, and fastai's whole face on them."
import io, struct, subprocess, sys, zlib
import cv2, numpy as np, pydicom, pytest, timm
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps
from pydicom import pixels, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
import matplotlib.pyplot as plt, torch
from torch import nn
from fastai.vision.all import (CategoryBlock, ClassificationInterpretation, DataBlock, ImageBlock, Interpretation, Learner, Normalize, RandomSplitter, Resize, ToTensor, accuracy, aug_transforms,
                               get_image_files, imagenet_stats, noop, parent_label, tensor)
from fastai.callback.progress import ProgressCallback
from ols_fastai.images import *

def noise(shape=(24,20), depth=np.uint8): return np.random.default_rng(0).integers(0, np.iinfo(depth).max+1, shape, dtype=depth)
def encoded(ext, depth=np.uint8, shape=(24,20), args=()): return cv2.imencode(ext, noise(shape, depth), args)[1].tobytes()
def pil(a, fmt, **kw):
    f = io.BytesIO()
    (a if isinstance(a, Image.Image) else Image.fromarray(a)).save(f, fmt, **kw)
    return f.getvalue()

def dicom(a, syntax=uid.ExplicitVRLittleEndian, **tags):
    "The bytes of a DICOM file; tags given as None are left out"
    ds,bits,f = Dataset(),a.dtype.itemsize*8,io.BytesIO()
    colour = a.shape[-1]==3
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID,ds.file_meta.MediaStorageSOPClassUID,ds.file_meta.MediaStorageSOPInstanceUID = syntax,'1.2.840.10008.5.1.4.1.1.7','1.2.3'
    base = dict(SOPClassUID='1.2.840.10008.5.1.4.1.1.7', SOPInstanceUID='1.2.3', Rows=a.shape[-3+(not colour)], Columns=a.shape[-2+(not colour)], SamplesPerPixel=3 if colour else 1,
                PhotometricInterpretation='RGB' if colour else 'MONOCHROME2', BitsAllocated=bits, BitsStored=bits, HighBit=bits-1, PixelRepresentation=int(a.dtype.kind=='i'), PixelData=a.tobytes())
    if colour: base['PlanarConfiguration'] = 0
    for k,v in {**base, **tags}.items():
        if v is not None: setattr(ds, k, v)
    if 'PixelData' in ds: ds['PixelData'].VR = 'OB' if bits==8 else 'OW'
    ds.save_as(f, enforce_file_format=True)
    return f.getvalue()

def put(path, data):
    path.write_bytes(data)
    return path

## The formats

@pytest.mark.parametrize('depth', (np.uint8,np.uint16))
@pytest.mark.parametrize('shape', ((24,20),(24,20,3),(24,20,4)))
@pytest.mark.parametrize('ext', ('png','tiff','bmp'))
def test_lossless(ext, shape, depth, tmp_path):
    "The pixels that were written, without alpha, in RGB order"
    if ext=='bmp' and depth==np.uint16: pytest.skip('BMP has 8 bit')
    a = noise(shape, depth)
    got = read_image(put(tmp_path/'a.img', cv2.imencode('.'+ext, a)[1].tobytes()))
    assert got.dtype==depth and np.array_equal(got, a if a.ndim==2 else a[...,2::-1])

@pytest.mark.parametrize('mode', ('L','RGB','CMYK'))
def test_jpeg(mode, tmp_path):
    smooth = cv2.resize(noise((4,4,3)), (32,24), interpolation=cv2.INTER_CUBIC)
    im = Image.fromarray(smooth).convert(mode)
    got = read_image(put(tmp_path/'a.jpg', pil(im, 'JPEG', quality=95)))
    want = np.asarray(im if mode=='L' else im.convert('RGB')).astype(int)
    assert got.shape==want.shape and abs(got-want).mean()<4

@pytest.mark.parametrize('fmt', ('PNG','TIFF','BMP'))
@pytest.mark.parametrize('mode', ('1','L','P','RGB','RGBA','LA'))
def test_as_pil_reads_it(fmt, mode, tmp_path):
    "Palettes, single bits and transparent pixels, whose stored colour counts"
    if fmt=='BMP' and mode=='LA': pytest.skip('PIL writes no such file')
    im = Image.fromarray(np.dstack([noise((24,20,3)), np.full((24,20), 0, np.uint8)]))
    im = im.convert('RGB').convert(mode) if mode in '1LP' else im.convert(mode)
    data = pil(im, fmt)
    got = read_image(put(tmp_path/'a.img', data))
    got = got if got.ndim==3 else np.stack([got]*3, -1)
    assert np.array_equal(got, np.asarray(Image.open(io.BytesIO(data)).convert('RGB')))
    assert np.array_equal(np.asarray(ToTensor()(CVImage.create(im))), got.transpose(2,0,1))  # in memory as from the file

@pytest.mark.parametrize('turn', range(1, 9))
@pytest.mark.parametrize('fmt,mode', (('JPEG','L'),('JPEG','RGB'),('PNG','L'),('PNG','I;16'),('TIFF','RGB'),('TIFF','I;16')))
def test_exif_orientation(fmt, mode, turn, tmp_path):
    a = np.zeros((16,24), np.uint16); a[:8,:8] = 65535; a[8:,8:16] = 30000     # no two turns of it are alike
    im = Image.fromarray(a) if mode=='I;16' else Image.fromarray((a>>8).astype(np.uint8)).convert(mode)
    exif = Image.Exif(); exif[0x112] = turn
    data = pil(im, fmt, exif=exif, **(dict(quality=100) if fmt=='JPEG' else {}))
    got = read_image(put(tmp_path/'a.img', data)).astype(int)
    want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))).astype(int)
    assert got.shape==want.shape and abs(got-want).max()<=(3 if fmt=='JPEG' else 0)

@pytest.mark.parametrize('dtype', ('float32','int32','float64'))
def test_other_pixels_are_refused(dtype, tmp_path):
    fn = put(tmp_path/'a.tiff', cv2.imencode('.tiff', noise().astype(dtype))[1].tobytes())
    with pytest.raises(ValueError, match='a.tiff.*only 8 and 16 bit'): read_image(fn)

def test_pages(tmp_path):
    "A volume is an error, a preview beside the image is not"
    a,b = (Image.fromarray(o) for o in (noise(), noise((6,5))))
    with pytest.raises(ValueError, match='2 pages'): read_image(put(tmp_path/'a.tiff', pil(a, 'TIFF', save_all=True, append_images=[b])))
    b.encoderinfo = dict(tiffinfo={254: 1})
    assert np.array_equal(read_image(put(tmp_path/'b.tiff', pil(a, 'TIFF', save_all=True, append_images=[b]))), noise())
    big = pil(a, 'TIFF', big_tiff=True)
    assert big[2:4]==b'\x2b\0' and np.array_equal(read_image(put(tmp_path/'c.tiff', big)), noise())

def test_window(tmp_path):
    a = (noise(depth=np.uint16)>>4); a[0,:3] = 0,2048,4095
    for ext in ('png','tiff'):
        got = read_image(put(tmp_path/'a.img', cv2.imencode('.'+ext, a)[1].tobytes()), window=(1000,500)).astype(float)
        assert abs(got-np.clip((a.astype(float)-750)/500, 0, 1)*65535).max()<=.51
    with pytest.raises(ValueError, match='a.img.*window'): read_image(tmp_path/'a.img', window=(1000,-1))
    assert np.array_equal(read_image(put(tmp_path/'b.png', encoded('.png')), window=(1000,500)), noise())
    x = DataBlock(CVImageBlock(window=(1000,500))).datasets([tmp_path/'a.img']*4).train[0][0]
    assert np.array_equal(x, read_image(tmp_path/'a.img', window=(1000,500)))

## DICOM

hu = (np.random.default_rng(1).integers(-1000, 1000, (24,20))).astype(np.int16)
ct = dict(RescaleSlope=2, RescaleIntercept=-1024)

@pytest.mark.parametrize('func', (None,'LINEAR','LINEAR_EXACT','SIGMOID'))
@pytest.mark.parametrize('c,w', ((40,400),([-600,40],[1500,400])))
def test_dicom_window(func, c, w, tmp_path):
    "As pydicom's own windowing gives it, on a scale of 0 to 1; the first of several windows"
    fn = put(tmp_path/'a', dicom(hu, **ct, WindowCenter=c, WindowWidth=w, VOILUTFunction=func))
    ds = pydicom.dcmread(fn)
    want = pixels.apply_windowing(pixels.apply_rescale(ds.pixel_array, ds), ds)
    lo,hi = (o*2-1024 for o in (-2**15,2**15-1))
    assert abs(read_image(fn)/65535-(want-lo)/(hi-lo)).max()<1e-4

def test_dicom_given_window(tmp_path):
    fn = put(tmp_path/'a', dicom(hu, **ct, WindowCenter=40, WindowWidth=400))
    assert abs(read_image(fn, window=(100,800))/65535-np.clip((hu*2.-1024+300)/800, 0, 1)).max()<1e-4

@pytest.mark.parametrize('depth,tags', ((np.int16,dict(WindowCenter=40, WindowWidth=400)), (np.uint8,{}), (np.uint16,{})))
def test_monochrome1_is_turned_over(depth, tags, tmp_path):
    a = noise(depth=depth) if depth!=np.int16 else hu
    one,two = (read_image(put(tmp_path/k, dicom(a, PhotometricInterpretation=k, **tags))) for k in ('MONOCHROME1','MONOCHROME2'))
    assert one.dtype==two.dtype and np.array_equal(one, np.iinfo(one.dtype).max-two) and two.min()<two.max()

def test_dicom_without_window(tmp_path):
    assert np.array_equal(read_image(put(tmp_path/'a', dicom(noise()))), noise())
    got = read_image(put(tmp_path/'b', dicom(hu, **ct)))/65535
    assert abs(got-(hu.astype(float)-hu.min())/np.ptp(hu.astype(float))).max()<1e-4

def test_dicom_tables(tmp_path):
    "A modality table in place of the rescale, a VOI table in place of the window"
    def table(data, bits, **kw):
        ds = Dataset(); ds.LUTDescriptor,ds.LUTData = [len(data),0,bits],data
        ds['LUTDescriptor'].VR = ds['LUTData'].VR = 'US'
        for k,v in kw.items(): setattr(ds, k, v)
        return Sequence([ds])
    a = noise()%16
    up = [int(o**2) for o in range(16)]
    got = read_image(put(tmp_path/'a', dicom(a, VOILUTSequence=table([o*16 for o in up], 12))))
    assert abs(got/65535-a.astype(float)**2*16/4095).max()<1e-4
    got = read_image(put(tmp_path/'b', dicom(a, ModalityLUTSequence=table(up, 16, ModalityLUTType='US')), ), window=(112.5,225))
    assert abs(got/65535-a.astype(float)**2/225).max()<1e-4

def test_dicom_colour(tmp_path):
    a = noise((24,20,3))
    assert np.array_equal(read_image(put(tmp_path/'a', dicom(a))), a)
    ybr = pixels.convert_color_space(a, 'RGB', 'YBR_FULL')
    got = read_image(put(tmp_path/'b', dicom(ybr, PhotometricInterpretation='YBR_FULL')))
    assert abs(got.astype(int)-pixels.convert_color_space(ybr, 'YBR_FULL', 'RGB')).max()==0
    lut = {f'{c}PaletteColorLookupTable{k}': v for i,c in enumerate(('Red','Green','Blue')) for k,v in (('Descriptor',[256,0,16]),('Data',(np.arange(256)*(i+1)*80).astype(np.uint16).tobytes()))}
    got = read_image(put(tmp_path/'c', dicom(noise(), PhotometricInterpretation='PALETTE COLOR', **lut)))
    assert got.dtype==np.uint16 and np.array_equal(got, noise()[...,None].astype(int)*[80,160,240])

def test_dicom_compressed(tmp_path):
    "RLE is pydicom's own; JPEG-LS takes a decoder that is not here"
    ds = pydicom.dcmread(put(tmp_path/'a', dicom(noise()))); ds.compress(uid.RLELossless, encoding_plugin='pydicom'); ds.save_as(tmp_path/'rle.dcm')
    assert np.array_equal(read_image(tmp_path/'rle.dcm'), noise())
    if pixels.get_decoder(uid.JPEGLSLossless).is_available: pytest.skip('a JPEG-LS decoder is installed')
    fn = put(tmp_path/'ls.dcm', dicom(noise(), uid.JPEGLSLossless, PixelData=encapsulate([b'\xff\xd8'+b'\1'*30])))
    with pytest.raises(ValueError, match='ls.dcm.*JPEG-LS.*pip install'): read_image(fn)

def test_dicom_that_is_no_image(tmp_path):
    for name,data,words in (('movie',dicom(np.stack([hu]*3), NumberOfFrames=3),'has 3 frames'), ('report',dicom(hu, PixelData=None),'without an image'),
                            ('huge',dicom(hu, Rows=40_000, Columns=40_000),'claims to have 40000 x 40000'), ('short',dicom(hu, PixelData=hu.tobytes()[:-40]),'bytes'),
                            ('odd',dicom(hu, PhotometricInterpretation='SOMETHING'),'SOMETHING'), ('text.dcm',b'no dicom','no dicom|InvalidDicom')):
        with pytest.raises(ValueError, match=f'{name}.*({words})'): read_image(put(tmp_path/name, data))

def test_without_pydicom(tmp_path, monkeypatch):
    fn = put(tmp_path/'a.dcm', dicom(hu))
    monkeypatch.setitem(sys.modules, 'pydicom', None)
    with pytest.raises(ImportError, match=r'a\.dcm.*ols_fastai\[dicom\]'): read_image(fn)

## Damage

files = {'png': encoded('.png'), 'png16': encoded('.png', np.uint16), 'colour': encoded('.png', shape=(24,20,3)), 'jpg': encoded('.jpg'),
         'progressive': encoded('.jpg', shape=(24,20,3), args=(cv2.IMWRITE_JPEG_PROGRESSIVE,1)), 'bmp': encoded('.bmp'), 'tiff': encoded('.tiff'), 'tiff16': encoded('.tiff', np.uint16),
         'deflate': pil(noise(), 'TIFF', compression='tiff_deflate'), 'dicom': dicom(hu, **ct, WindowCenter=40, WindowWidth=400), 'dicom8': dicom(noise((24,20,3)))}
quiet = pytest.mark.filterwarnings('ignore')  # PIL and pydicom warn of what they stumble over
# hypothesis looks for seconds of silence on its own: a single read that takes longer is a failure
fuzz = lambda n: settings(max_examples=n, deadline=5000, derandomize=True)

@quiet
@pytest.mark.parametrize('kind', files)
@fuzz(60)
@given(share=st.floats(0, .999))
def test_cut_file(kind, share, tmp_path_factory):
    fn,whole = tmp_path_factory.getbasetemp()/f'{kind}.img',files[kind]
    want = read_image(put(fn, whole))
    put(fn, whole[:int(len(whole)*share)])
    try: got = read_image(fn)
    except ValueError as e: assert str(fn) in str(e)
    else: assert (got==want).all()

@quiet
@pytest.mark.parametrize('kind', files)
@fuzz(250)
@given(data=st.data())
def test_flipped_bits(kind, data, tmp_path_factory):
    "An error, or a picture; of a PNG, which has sums to check, the right one"
    fn,whole = tmp_path_factory.getbasetemp()/f'{kind}.img',files[kind]
    want,bad = read_image(put(fn, whole)),bytearray(whole)
    # half of the flips in the header, where they hurt most
    place = st.one_of(st.integers(0, 8*min(160, len(whole))-1), st.integers(0, 8*len(whole)-1))
    for i in data.draw(st.lists(place, min_size=1, max_size=3, unique=True)): bad[i//8] ^= 1<<i%8
    put(fn, bad)
    try: got = read_image(fn)
    except ValueError as e: assert str(fn) in str(e)
    else:
        assert got.dtype in (np.uint8,np.uint16) and (got.ndim==2 or got.ndim==3 and got.shape[2]==3) and got.size
        if kind in ('png','png16','colour'): assert np.array_equal(got, want)

@quiet
@fuzz(200)
@given(head=st.sampled_from([b'',*(o[:k] for o in files.values() for k in (4,30,140))]), tail=st.binary(max_size=200))
def test_anything(head, tail, tmp_path_factory):
    fn = put(tmp_path_factory.getbasetemp()/'any.img', head+tail)
    try: assert read_image(fn).dtype in (np.uint8,np.uint16)
    except ValueError as e: assert str(fn) in str(e)

def huge(kind, side=40_000):
    "A file whose header claims to be `side` pixels wide and high, and is right otherwise"
    b = bytearray(files[kind])
    if kind=='png': b[16:24] = struct.pack('>II', side, side); b[29:33] = struct.pack('>I', zlib.crc32(b[12:29]))
    if kind in ('jpg','progressive'): i = b.index(b'\xff\xc0' if kind=='jpg' else b'\xff\xc2')+5; b[i:i+4] = struct.pack('>HH', side, side)
    if kind=='bmp': b[18:26] = struct.pack('<ii', side, -side)
    if kind=='tiff':
        i = struct.unpack_from('<I', b, 4)[0]
        for k in range(struct.unpack_from('<H', b, i)[0]):
            j = i+2+12*k
            if struct.unpack_from('<H', b, j)[0] in (256,257): b[j+2:j+12] = struct.pack('<HII', 4, 1, side)
    return bytes(b)

@pytest.mark.parametrize('kind', ('png','jpg','progressive','bmp','tiff'))
def test_huge_claims(kind, tmp_path, monkeypatch):
    "Refused before memory is asked for; PIL's limit is the limit"
    fn = put(tmp_path/'a.img', huge(kind))
    with pytest.raises(ValueError, match='a.img.*claims to have 40000 x 40000'): read_image(fn)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 24*20//2)
    assert read_image(put(fn, files[kind])).shape[:2]==(24,20)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 24*20//2-1)
    with pytest.raises(ValueError, match='claims to have 20 x 24'): read_image(fn)

def test_more_pixels_than_the_bytes_can_hold(tmp_path):
    "10,000 x 10,000 would be allowed, but not from 900 bytes; and a PNG's header is not believed when its sum is wrong"
    with pytest.raises(ValueError, match='claims to have 10000 x 10000'): read_image(put(tmp_path/'a.jpg', huge('jpg', 10_000)))
    bad = bytearray(huge('jpg', 10_000)); i = bad.index(b'\xff\xc0'); bad[i:i] = b'\0\1\2\xff\0\xff\xd0'   # what libjpeg skips
    with pytest.raises(ValueError, match='claims to have 10000 x 10000'): read_image(put(tmp_path/'a.jpg', bad))
    bad = bytearray(files['png']); bad[18] ^= 32
    with pytest.raises(ValueError, match='a.png.*damaged header'): read_image(put(tmp_path/'a.png', bad))

def test_large_flat_jpeg_is_no_bomb(tmp_path):
    "The least that a JPEG can take a pixel is far above what is refused"
    for args in ((),(cv2.IMWRITE_JPEG_PROGRESSIVE,1),(cv2.IMWRITE_JPEG_OPTIMIZE,1,cv2.IMWRITE_JPEG_PROGRESSIVE,1,cv2.IMWRITE_JPEG_QUALITY,1)):
        for shape in ((4000,4000),(4000,4000,3)):
            assert read_image(put(tmp_path/'a.jpg', cv2.imencode('.jpg', np.zeros(shape, np.uint8), args)[1].tobytes())).shape==shape

def test_thumbnail_is_not_the_end(tmp_path):
    "The preview in a JPEG's header has an end marker of its own, and sizes"
    whole,fn = files['jpg'],tmp_path/'a.jpg'
    thumb = encoded('.jpg', shape=(8,8))
    both = whole[:2]+b'\xff\xe1'+(len(thumb)+2).to_bytes(2, 'big')+thumb+whole[2:]
    assert np.array_equal(read_image(put(fn, both)), read_image(put(tmp_path/'b.jpg', whole)))
    with pytest.raises(ValueError, match='ends before'): read_image(put(fn, both[:-40]))

def test_missing(tmp_path):
    for fn in (tmp_path/'none.png', tmp_path):
        with pytest.raises(FileNotFoundError, match=fn.name): read_image(fn)

## Scaled decoding

@pytest.mark.parametrize('shape', ((640,480),(640,480,3),(479,640)))
@pytest.mark.parametrize('least', (1,59,60,61,119,120,121,239,240,241,500))
def test_scaled_jpeg_is_never_too_small(shape, least, tmp_path):
    a = cv2.resize(noise((8,6,*shape[2:])), shape[1::-1], interpolation=cv2.INTER_CUBIC)
    fn = put(tmp_path/'a.jpg', cv2.imencode('.jpg', a)[1].tobytes())
    full,got = read_image(fn),read_image(fn, min_side=least)
    short = min(shape[:2])
    k = max(k for k in (1,2,4,8) if k==1 or short/k>=least)
    assert got.shape==(*(-(-o//k) for o in shape[:2]),*shape[2:])
    assert min(got.shape[:2])>=min(least, short)
    small = cv2.resize(full, got.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert abs(got.astype(int)-small).mean()<2

def test_scaled_jpeg_is_turned_too(tmp_path):
    exif = Image.Exif(); exif[0x112] = 6
    fn = put(tmp_path/'a.jpg', pil(noise((64,96)), 'JPEG', exif=exif))
    assert read_image(fn).shape==(96,64) and read_image(fn, min_side=32).shape==(48,32)

def test_min_side_is_off_and_for_jpeg_only(tmp_path):
    for ext in ('png','tiff','bmp'): assert read_image(put(tmp_path/'a', encoded('.'+ext, shape=(64,64))), min_side=8).shape==(64,64)
    fn = put(tmp_path/'a.jpg', encoded('.jpg', shape=(64,64)))
    ds = lambda **kw: DataBlock(CVImageBlock(**kw)).datasets([fn]).train[0][0]
    assert ds().shape==(64,64) and ds(min_side=16).shape==(16,16)

## Statistics

def test_pretrained_stats():
    assert pretrained_stats('resnet50')==tuple(map(list, imagenet_stats)) and pretrained_stats('vit_tiny_patch16_224')==inception_stats
    with pytest.raises(ValueError, match='resnet50'): pretrained_stats('resnet50', inception_stats)
    with pytest.raises(ValueError, match='deviation'): pretrained_stats('resnet50', (imagenet_stats[0],[.3,.3,.3]))
    model = timm.create_model('resnet18', num_classes=2)
    assert pretrained_stats(model, imagenet_stats)==pretrained_stats('resnet18')
    with pytest.raises(ValueError, match='ResNet'): pretrained_stats(model, inception_stats)
    for o in ('small_cnn',nn.Linear(2,2)):
        with pytest.raises(ValueError, match='no pretrained weights'): pretrained_stats(o)

def test_pretrained_stats_of_loaders(image_dls):
    with pytest.raises(ValueError, match='mean'): pretrained_stats('resnet50', image_dls())
    assert pretrained_stats('resnet50', image_dls(stats=imagenet_stats))==pretrained_stats('resnet50')
    bare = DataBlock((ImageBlock,CategoryBlock), get_items=get_image_files, get_y=parent_label, item_tfms=Resize(16)).dataloaders(image_dls.path, bs=4, num_workers=0, device='cpu')
    with pytest.raises(ValueError, match=r'\[0.0, 0.0, 0.0\]'): pretrained_stats('resnet50', bare)

## fastai's face

@pytest.fixture
def image_dls(tmp_path):
    "A function that makes `DataLoaders` of 24 images of two classes: light and dark, of 8 and 16 bit, grey and in colour"
    path = tmp_path/'set'
    for label,lo in (('dark knee, lateral',0),('light shoulder',150)):
        (path/label).mkdir(parents=True)
        for i in range(12):
            a = (lo+noise((30,36))//3).astype(np.uint8)
            if i%3==1: a = a.astype(np.uint16)*257
            if i%2: a = np.stack([a]*3, -1)
            cv2.imwrite(str(path/label/f'{i}.png'), a)
    def make(num_workers=0, batch_tfms=None, **kw):
        block = DataBlock((CVImageBlock(**kw),CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(seed=1), item_tfms=CVResize(16, crop=.8), batch_tfms=batch_tfms)
        return block.dataloaders(path, bs=4, num_workers=num_workers, device='cpu')
    make.path = path
    return make

def small_net(): return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))

@pytest.fixture
def learn(image_dls):
    learn = Learner(image_dls(), small_net(), metrics=accuracy)
    learn.logger,learn.create_mbar = noop,False
    learn.remove_cb(ProgressCallback)
    learn.fit(12, .05)
    return learn

def titles(fig=None): return [o.get_title() for o in (fig or plt.gcf()).axes if o.images]

def test_batches(image_dls):
    "A quarter of the files of 16 bit, in batches with the others, also from worker processes; the same with both"
    want = None
    for w in (0,2):
        dls = image_dls(num_workers=w)
        xs = torch.cat([x for x,_ in dls.valid])
        assert xs.shape==(4,3,16,16) and xs.dtype==torch.float32 and -1<=xs.min()<xs.max()<=1
        want = xs if want is None else want
        assert torch.equal(torch.as_tensor(want), torch.as_tensor(xs))
    x,y = image_dls().train_ds[0]
    fn = image_dls().train_ds.items[0]
    a = cv2.imread(str(fn), cv2.IMREAD_UNCHANGED)
    scale = a/np.iinfo(a.dtype).max*2-1
    got = image_dls().train.after_batch(image_dls().train.create_batch(image_dls().train.before_batch([ToTensor()((x,y))])))[0][0]
    assert abs(np.asarray(got)[0]-(scale if a.ndim==2 else scale[...,0])).max()<1e-3

def test_batch_augmentation(image_dls):
    "fastai's own transforms of batches run on these images, between the two of the block"
    dls = image_dls(batch_tfms=aug_transforms(size=12, max_rotate=5.))
    x,_ = dls.one_batch()
    assert x.shape==(4,3,12,12) and [type(o).__name__ for o in dls.after_batch.fs][0]=='IntToFloatTensor' and isinstance(dls.after_batch.fs[-1], Normalize)
    assert -1.01<x.min()<x.max()<1.01 and x.std()>.2

def test_stats_given_later_replace_the_block_s(image_dls):
    dls = image_dls(batch_tfms=Normalize.from_stats(*imagenet_stats))
    assert pretrained_stats('resnet50', dls)==pretrained_stats('resnet50') and len(dls.after_batch.fs)==2

def test_show_batch(image_dls):
    dls = image_dls(); plt.close('all')
    dls.show_batch(max_n=4, nrows=1)
    assert len(titles())==4 and set(titles())<=set(dls.vocab)
    for im in (o.images[0].get_array() for o in plt.gcf().axes):
        assert im.shape==(16,16,3) and im.min()>=0 and im.max()<=255 and np.ptp(np.asarray(im))>20
    means = {t: o.images[0].get_array().mean() for o,t in zip(plt.gcf().axes, titles())}
    assert all((m<110)==t.startswith('dark') for t,m in means.items())

def test_show_one_item(image_dls):
    dls = image_dls(); plt.close('all')
    ax = dls.train_ds.show(dls.train_ds[0])
    assert ax.get_title() in dls.vocab and ax.images[0].get_array().shape[:2]==(30,36)

def test_predict(learn, image_dls):
    "A path, its name, an array, a PIL image and a `CVImage` of the same picture give the same answer"
    for fn in (image_dls.path/'dark knee, lateral'/'4.png', image_dls.path/'light shoulder'/'3.png'):
        label,i,preds = learn.predict(fn)
        assert label==fn.parent.name and learn.dls.vocab[i]==label and preds.argmax()==i
        a = read_image(fn)
        for o in (str(fn), a, CVImage.create(fn), *([Image.open(fn)] if a.dtype==np.uint8 else [])):
            label2,i2,preds2 = learn.predict(o)
            assert label2==label and torch.allclose(preds, preds2, atol=1e-6)

def test_test_dl(learn, image_dls, tmp_path):
    files = get_image_files(image_dls.path).sorted()
    preds,_ = learn.get_preds(dl=learn.dls.test_dl(files))
    want = tensor([learn.dls.vocab.o2i[o.parent.name] for o in files])
    assert torch.equal(preds.argmax(1), want)
    preds2,targs = learn.get_preds(dl=learn.dls.test_dl(files, with_labels=True))
    assert torch.equal(preds2, preds) and torch.equal(torch.as_tensor(targs), want)
    put(tmp_path/'bad.png', b'no image')
    with pytest.raises(ValueError, match='bad.png'): learn.get_preds(dl=learn.dls.test_dl([tmp_path/'bad.png']))

def test_export(learn, image_dls, tmp_path):
    "A learner loaded in a process that has imported fastai alone"
    fn = image_dls.path/'light shoulder'/'3.png'
    learn.export(tmp_path/'learn.pkl')
    code = f"""if 1:
        from fastai.vision.all import *
        learn = load_learner({str(tmp_path/'learn.pkl')!r})
        learn.remove_cb(ProgressCallback)
        label,i,preds = learn.predict({str(fn)!r})
        print('RESULT', label, preds.tolist()[1])"""
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert out.returncode==0, out.stderr
    *label,p = next(o for o in out.stdout.splitlines() if o.startswith('RESULT')).split()[1:]
    assert ' '.join(label)=='light shoulder' and abs(float(p)-learn.predict(fn)[2][1])<1e-5

def test_show_results(learn):
    plt.close('all'); learn.show_results(max_n=4)
    assert len(titles())==4 and all(set(o.split('\n'))<=set(learn.dls.vocab) and len(o.split('\n'))==2 for o in titles())

def test_interpretation(learn):
    interp = Interpretation.from_learner(learn)
    plt.close('all'); interp.show_results([0,1])
    assert len(titles())==2 and all(set(o.split('\n'))<=set(learn.dls.vocab) for o in titles())
    plt.close('all'); interp.plot_top_losses(3)
    assert len(titles())==3 and all(o.split('/')[0] in learn.dls.vocab for o in titles())
    cm = ClassificationInterpretation.from_learner(learn).confusion_matrix()
    assert cm.sum()==4
