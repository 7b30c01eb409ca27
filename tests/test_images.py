"Image files: every format right, damaged ones an error that names the file, and fastai's whole face on them."
import io, re, struct, subprocess, sys, warnings, zlib
from pathlib import Path
import cv2, numpy as np, pydicom, pytest, tifffile, timm
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps
from pydicom import pixels, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
import matplotlib.pyplot as plt, torch
from torch import nn
from fastai.vision.all import (CategoryBlock, ClassificationInterpretation, DataBlock, ImageBlock, Interpretation, Learner, Normalize, RandomSplitter, Resize, ToTensor, accuracy, aug_transforms,
                               get_image_files, imagenet_stats, noop, parent_label, tensor)
from fastai.vision.all import FlipItem, MixUp, RandomErasing, RandomResizedCrop, load_learner
from fastai.callback.progress import ProgressCallback
from ols_fastai.data.images import *
from ols_fastai.data.transforms import *

def noise(shape=(24,20), depth=np.uint8): return np.random.default_rng(0).integers(0, np.iinfo(depth).max+1, shape, dtype=depth)
def encoded(ext, depth=np.uint8, shape=(24,20), args=()): return cv2.imencode(ext, noise(shape, depth), args)[1].tobytes()
def pil(a, fmt, **kw):
    f = io.BytesIO()
    (a if isinstance(a, Image.Image) else Image.fromarray(a)).save(f, fmt, **kw)
    return f.getvalue()

def dicom(a, syntax=uid.ExplicitVRLittleEndian, **tags):
    "The bytes of a DICOM file; tags given as None are left out, those given as 'empty' are there without a value"
    ds,bits,f = Dataset(),a.dtype.itemsize*8,io.BytesIO()
    colour = a.shape[-1]==3
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID,ds.file_meta.MediaStorageSOPClassUID,ds.file_meta.MediaStorageSOPInstanceUID = syntax,'1.2.840.10008.5.1.4.1.1.7','1.2.3'
    base = dict(SOPClassUID='1.2.840.10008.5.1.4.1.1.7', SOPInstanceUID='1.2.3', Rows=a.shape[-3+(not colour)], Columns=a.shape[-2+(not colour)], SamplesPerPixel=3 if colour else 1,
                PhotometricInterpretation='RGB' if colour else 'MONOCHROME2', BitsAllocated=bits, BitsStored=bits, HighBit=bits-1, PixelRepresentation=int(a.dtype.kind=='i'), PixelData=a.tobytes())
    if colour: base['PlanarConfiguration'] = 0
    for k,v in {**base, **tags}.items():
        if v is not None: setattr(ds, k, None if v=='empty' else v)
    if 'PixelData' in ds: ds['PixelData'].VR = 'OB' if bits==8 else 'OW'
    ds.save_as(f, enforce_file_format=True)
    return f.getvalue()

def put(path, data):
    path.write_bytes(data)
    return path

quiet = pytest.mark.filterwarnings('ignore')  # PIL and pydicom warn of what they stumble over

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

## TIFF of every kind

grey16 = np.random.default_rng(2).integers(0, 65536, (24,20), dtype=np.uint16)
colour16 = np.random.default_rng(3).integers(0, 65536, (24,20,3), dtype=np.uint16)

def tiff(a, **kwargs):
    f = io.BytesIO()
    tifffile.imwrite(f, a, **kwargs)
    return f.getvalue()

def with_orientation(a, turn, **kwargs): return tiff(a, extratags=[(274,'H',1,turn,True)], **kwargs)

def packed_tiff(values, bits, white_is_zero=False):
    "An uncompressed grey TIFF of samples that are no whole bytes"
    h,w = values.shape
    text = [''.join(f'{o:0{bits}b}' for o in row) for row in values]
    rows = b''.join(int(o.ljust(-(-len(o)//8)*8, '0'), 2).to_bytes(-(-len(o)//8), 'big') for o in text)
    rows += b'\0'*(len(rows)%2)
    tags = ((256,w), (257,h), (258,bits), (259,1), (262,int(not white_is_zero)), (273,8), (277,1), (278,h), (279,len(rows)))
    directory = struct.pack('<H', len(tags))+b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag,value in tags)+bytes(4)
    return struct.pack('<2sHI', b'II', 42, 8+len(rows))+rows+directory

@pytest.mark.parametrize('byteorder', '<>')
@pytest.mark.parametrize('depth', (np.uint8,np.uint16))
@pytest.mark.parametrize('how', ({}, dict(compression='zlib', predictor=True), dict(tile=(16,16)), dict(rowsperstrip=5)))
def test_tiff_where_white_is_zero(how, depth, byteorder, tmp_path):
    "Inverted with 8 and with 16 bits, however it is stored"
    a = grey16.astype(depth)
    for photometric,want in (('minisblack',a),('miniswhite',np.iinfo(depth).max-a)):
        got = read_image(put(tmp_path/'a.tif', tiff(a, photometric=photometric, byteorder=byteorder, **how)))
        assert got.dtype==depth and got.dtype.isnative and np.array_equal(got, want)

@pytest.mark.parametrize('byteorder', '<>')
@pytest.mark.parametrize('depth', (np.uint8,np.uint16))
@pytest.mark.parametrize('how', ({}, dict(compression='zlib', predictor=True), dict(tile=(16,16)), dict(rowsperstrip=5)))
def test_tiff_in_planes(how, depth, byteorder, tmp_path):
    a = colour16.astype(depth)
    planes = np.ascontiguousarray(a.transpose(2,0,1))
    for data in (tiff(a, photometric='rgb', byteorder=byteorder, **how), tiff(planes, photometric='rgb', planarconfig='separate', byteorder=byteorder, **how)):
        got = read_image(put(tmp_path/'a.tif', data))
        assert got.dtype==depth and got.dtype.isnative and np.array_equal(got, a)

@pytest.mark.parametrize('planarconfig', ('contig','separate'))
@pytest.mark.parametrize('depth', (np.uint8,np.uint16))
@pytest.mark.parametrize('extra', (['unspecified'],['unassalpha'],['unspecified','unspecified']))
def test_tiff_extra_samples(extra, depth, planarconfig, tmp_path):
    "The samples that are no colour are dropped: not laid on black, not an error, and no bits are lost with them"
    colour,beside = colour16.astype(depth),(grey16//3).astype(depth)
    for photometric,a in (('rgb',colour),('minisblack',colour[...,0]),('miniswhite',colour[...,0])):
        stored = np.dstack([a]+[beside]*len(extra))
        if planarconfig=='separate': stored = np.ascontiguousarray(stored.transpose(2,0,1))
        got = read_image(put(tmp_path/'a.tif', tiff(stored, photometric=photometric, planarconfig=planarconfig, extrasamples=extra)))
        assert got.dtype==depth and np.array_equal(got, np.iinfo(depth).max-a if photometric=='miniswhite' else a)

def test_tiff_associated_alpha(tmp_path):
    "Colours that are multiplied by alpha: as Pillow divides them with 8 bits, an error with 16, unless nothing is transparent"
    a = (colour16//512).astype(np.uint8)
    data = tiff(np.dstack([a, np.full((24,20), 200, np.uint8)]), photometric='rgb', extrasamples=['assocalpha'])
    assert np.array_equal(read_image(put(tmp_path/'a.tif', data)), np.asarray(Image.open(io.BytesIO(data)).convert('RGB')))
    save = lambda alpha: put(tmp_path/'b.tif', tiff(np.dstack([colour16, np.full((24,20), alpha, np.uint16)]), photometric='rgb', extrasamples=['assocalpha']))
    assert np.array_equal(read_image(save(65535)), colour16)
    with pytest.raises(ValueError, match='b.tif.*alpha'): read_image(save(40000))

@pytest.mark.parametrize('white_is_zero', (False,True))
@pytest.mark.parametrize('bits', (1,2,4,6,8,10,12,14,16))
def test_tiff_bits(bits, white_is_zero, tmp_path):
    "All of the range, whatever the bits; or an error that says what is missing"
    v = np.random.default_rng(bits).integers(0, 2**bits, (6,8)); v[0,:2] = 0,2**bits-1
    if bits==16: data = tiff(v.astype(np.uint16), photometric='miniswhite' if white_is_zero else 'minisblack')
    else: data = packed_tiff(v, bits, white_is_zero)
    fn = put(tmp_path/'a.tif', data)
    top = 255 if bits<=8 else 65535
    want = (2**bits-1-v if white_is_zero else v)*top/(2**bits-1)
    try: got = read_image(fn)
    except ValueError as e: assert bits in (6,10,12,14) and 'pip install imagecodecs' in str(e)
    else: assert got.dtype==(np.uint8 if bits<=8 else np.uint16) and abs(got-want).max()<=.5

def test_tiff_of_12_bits_and_its_window(tmp_path):
    "A window is in the values of the file, not in those that a decoder makes of them"
    v = np.arange(0, 4096, 64).reshape(4, 16)
    got = read_image(put(tmp_path/'a.tif', packed_tiff(v, 12)), window=(1000,500))
    assert abs(got-np.clip((v-750)/500, 0, 1)*65535).max()<=.51

@pytest.mark.parametrize('turn', range(1, 9))
@pytest.mark.parametrize('kind', ('white','planes'))
def test_turned_tiff(kind, turn, tmp_path):
    "The orientation is applied on every way"
    if kind=='white': data,twin = with_orientation(65535-grey16, turn, photometric='miniswhite'),with_orientation(grey16, turn)
    else:
        planes = np.ascontiguousarray(colour16.transpose(2,0,1))
        data,twin = with_orientation(planes, turn, photometric='rgb', planarconfig='separate'),with_orientation(colour16, turn, photometric='rgb')
    assert np.array_equal(read_image(put(tmp_path/'a.tif', data)), read_image(put(tmp_path/'b.tif', twin)))

@pytest.mark.parametrize('photometric', ('separated','ycbcr','cielab'))
def test_tiff_colour_spaces(photometric, tmp_path):
    "As Pillow converts them with 8 bits; refused with 16"
    a = np.dstack([colour16, grey16]) if photometric=='separated' else colour16
    data = tiff((a>>8).astype(np.uint8), photometric=photometric)
    assert np.array_equal(read_image(put(tmp_path/'a.tif', data)), np.asarray(Image.open(io.BytesIO(data)).convert('RGB')))
    with pytest.raises(ValueError, match=f'b.tif.*{photometric.upper()} with 16 bits'): read_image(put(tmp_path/'b.tif', tiff(a, photometric=photometric)))

def test_tiff_palette(tmp_path):
    lut = np.random.default_rng(4).integers(0, 256, (3,256), dtype=np.uint16)
    got = read_image(put(tmp_path/'a.tif', tiff(noise(), photometric='palette', colormap=lut*256)))
    assert np.array_equal(got, lut.T[noise()])

@pytest.mark.parametrize('dtype', ('int8','int16','int32','uint32','float16','float32','float64','complex64'))
def test_tiff_pixels_that_are_refused(dtype, tmp_path):
    for photometric in ('minisblack','miniswhite'):
        fn = put(tmp_path/'a.tif', tiff(noise().astype(dtype), photometric=photometric))
        with pytest.raises(ValueError, match=f'a.tif.*type {dtype}: only 8 and 16 bit'): read_image(fn)

def test_tiff_volumes(tmp_path):
    "Several images in one file, however they are stored; previews and masks do not count, wherever they stand"
    volume = np.stack([noise()]*5)
    for i,kwargs in enumerate(({}, dict(imagej=True), dict(truncate=True), dict(ome=True), dict(volumetric=True, tile=(1,16,16)))):
        with pytest.raises(ValueError, match=f'{i}.tif.*5 pages'): read_image(put(tmp_path/f'{i}.tif', tiff(volume, **kwargs)))
    for kinds in ((0,1),(1,0)):
        f = io.BytesIO()
        with tifffile.TiffWriter(f) as w:
            for kind in kinds: w.write(grey16 if kind==0 else grey16[:6,:5].copy(), subfiletype=kind, photometric='minisblack')
        preview = f.getvalue()
        mask = preview.replace(struct.pack('<HHII', 254, 4, 1, 1), struct.pack('<HHII', 254, 4, 1, 4))
        assert mask!=preview
        for data in (preview,mask): assert np.array_equal(read_image(put(tmp_path/'a.tif', data)), grey16)

## Other formats, and images in memory

@pytest.mark.parametrize('fmt', ('GIF','WEBP','PNG','TIFF','AVIF'))
def test_several_images(fmt, tmp_path):
    "A film is the same error in every format, from the file and from PIL"
    if fmt not in Image.SAVE_ALL and fmt not in Image.SAVE: Image.init()
    frames = [Image.fromarray(np.full((16,16,3), o, np.uint8)) for o in (10,100,200)]
    try: data = pil(frames[0], fmt, save_all=True, append_images=frames[1:])
    except (KeyError,OSError): pytest.skip(f'this Pillow writes no {fmt}')
    with pytest.raises(ValueError, match='a.img.*has 3 pages'): read_image(put(tmp_path/'a.img', data))
    with pytest.raises(ValueError, match='has 3 pages'): CVImage.create(Image.open(tmp_path/'a.img'))
    alone = read_image(put(tmp_path/'b.img', pil(frames[1], fmt)))
    assert abs(alone.astype(int)-100).max()<=2

Image.init()
modes = ('1','L','P','PA','LA','La','RGB','RGBA','RGBa','RGBX','CMYK','YCbCr','HSV','LAB','I;16','I;16B','I','F')
refused = ('DIB','BLP','PCX','DDS','EPS','ICNS','ICO','IM','MSP','PALM','PDF','QOI','SGI','SPIDER','TGA','XBM')

def in_mode(mode):
    "A smooth image of a mode of Pillow's"
    a = np.dstack([cv2.resize(np.random.default_rng(i).integers(0, 256, (4,4), dtype=np.uint8), (20,24), interpolation=cv2.INTER_CUBIC) for i in range(4)])
    if mode=='LAB': return Image.frombytes('LAB', (20,24), a[...,:3].tobytes())
    if mode=='I;16B': return Image.frombytes(mode, (20,24), (a[...,0].astype('>u2')*257).tobytes())
    if mode[0] in 'IF': return Image.fromarray(a[...,0].astype({'I;16': np.uint16, 'I': np.int32, 'F': np.float32}[mode])*257)
    return Image.fromarray(a if mode in ('RGBA','LA','La','RGBa','PA','RGBX') else a[...,:3]).convert(mode)

def as_pillow(im):
    "What Pillow makes of an image, as an array of three channels"
    if im.mode.startswith('I'): a = np.asarray(im).astype(np.int64)
    else: a = np.asarray((im.convert('LA') if im.mode=='La' else im.convert('RGBA') if im.mode=='RGBa' else im).convert('RGB'))
    return a if a.ndim==3 else np.stack([a]*3, -1)

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('fmt', sorted(Image.SAVE))
def test_every_format_and_mode_of_pillow(fmt, tmp_path):
    "Each file that Pillow can write is read as Pillow reads it, or is an error with a cause"
    for mode in modes:
        try: data = pil(in_mode(mode), fmt)
        except Exception: continue  # Pillow writes no such file
        fn = put(tmp_path/f'{mode[0]}.img', data)
        try: got = read_image(fn)
        except ValueError as e:
            assert fmt in refused and 'is not an image that can be read' in str(e) or mode in 'IF' and 'only 8 and 16 bit' in str(e), (mode, e)
            continue
        assert fmt not in refused
        want = as_pillow(Image.open(fn))
        got = got if got.ndim==3 else np.stack([got]*3, -1)
        assert got.shape==want.shape and abs(got.astype(int)-want).max()<=(1 if fmt in ('JPEG','MPO') else 0), mode

@pytest.mark.parametrize('mode', modes)
def test_pil_images_of_every_mode(mode, tmp_path):
    "In memory as Pillow converts them, and as a file without loss would be read"
    im = in_mode(mode)
    if mode=='F':
        with pytest.raises(ValueError, match='float'): CVImage.create(im)
        return
    got = CVImage.create(im)
    assert got.dtype==(np.uint16 if mode[0]=='I' else np.uint8) and got.dtype.isnative
    full = np.asarray(got) if got.ndim==3 else np.stack([got]*3, -1)
    assert np.array_equal(full, as_pillow(im))
    try: data = pil(im, 'PNG')
    except Exception: return
    again = read_image(put(tmp_path/'a.png', data))
    assert np.array_equal(again if again.ndim==3 else np.stack([again]*3, -1), full)

def test_pil_images_of_whole_numbers():
    "Of mode I, in the range of 16 bits or refused; a window counts as it does for a file"
    a = np.tile(np.arange(0, 65536, 1024, dtype=np.int32), (8,1))
    assert np.array_equal(CVImage.create(Image.fromarray(a)), a)
    for bad in (a-1,a+2000):
        with pytest.raises(ValueError, match='values from'): CVImage.create(Image.fromarray(bad))
    got = CVImage.create(Image.fromarray(a.astype(np.uint16)), window=(2048,4096))
    assert abs(got-np.clip(a/4096, 0, 1)*65535).max()<=.51
    assert np.array_equal(CVImage.create(a.astype('>u2')), a) and CVImage.create(a.astype('>u2')).dtype.isnative

@pytest.mark.parametrize('top', (100,255,4095,65535))
def test_pgm(top, tmp_path):
    "Scaled by the white that the file names, binary and as text"
    v = np.random.default_rng(0).integers(0, top+1, (6,8)); v[0,0] = top
    white = 255 if top<256 else 65535
    raw = b'P5 8 6 %d\n'%top+v.astype('u1' if top<256 else '>u2').tobytes()
    text = b'P2 8 6 %d\n'%top+' '.join(map(str, v.flat)).encode()
    for data in (raw,text): assert abs(read_image(put(tmp_path/'a.pgm', data))-v*white/top).max()<=.5
    if top==4095:
        with pytest.raises(ValueError, match='window'): read_image(tmp_path/'a.pgm', window=(40,400))

def test_bmp_of_16_bits_a_pixel(tmp_path):
    "31 of 31 is white, as Pillow reads it, not 248"
    header = struct.pack('<IiiHHIIiiII', 40, 4, 1, 1, 16, 0, 8, 0, 0, 0, 0)
    data = b'BM'+struct.pack('<IHHI', 62, 0, 0, 54)+header+struct.pack('<4H', 0x7fff, 0, 0x7c00, 0x1f)
    assert read_image(put(tmp_path/'a.bmp', data)).tolist()==[[[255]*3,[0]*3,[255,0,0],[0,0,255]]]

@quiet
@pytest.mark.parametrize('fmt', ('GIF','WEBP','BMP','PPM','JPEG2000','AVIF'))
def test_other_formats_cut_off(fmt, tmp_path):
    "Cut off anywhere: the image, or an error; past half of it, the error says so"
    try: data = pil(in_mode('RGB'), fmt)
    except (KeyError,OSError): pytest.skip(f'this Pillow writes no {fmt}')
    want = read_image(put(tmp_path/'a.img', data))
    for n in range(1, len(data), max(1, len(data)//60)):
        try: got = read_image(put(tmp_path/'a.img', data[:n]))
        except ValueError as e: assert 'a.img' in str(e) and (n<=len(data)//2 or 'ends before' in str(e) or fmt=='AVIF' and 'damaged' in str(e)), (n, len(data), e)
        else: assert np.array_equal(got, want)

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
    fn = put(tmp_path/'ls.dcm', dicom(noise(), uid.JPEGLSLossless, PixelData=encapsulate([b'\xff\xd8'+b'\1'*30+b'\xff\xd9'])))
    with pytest.raises(ValueError, match='ls.dcm.*JPEG-LS.*pip install'): read_image(fn)

def test_dicom_that_is_no_image(tmp_path):
    for name,data,words in (('movie',dicom(np.stack([hu]*3), NumberOfFrames=3),'has 3 frames'), ('report',dicom(hu, PixelData=None),'has lost its pixels'),
                            ('huge',dicom(hu, Rows=40_000, Columns=40_000),'claims to have 40000 x 40000'), ('short',dicom(hu, PixelData=hu.tobytes()[:-40]),'bytes'),
                            ('odd',dicom(hu, PhotometricInterpretation='SOMETHING'),'SOMETHING'), ('text.dcm',b'no dicom','is not DICOM')):
        with pytest.raises(ValueError, match=f'{name}.*({words})'): read_image(put(tmp_path/name, data))

@pytest.mark.parametrize('tags', (dict(WindowCenter='empty', WindowWidth='empty'), dict(WindowCenter='empty', WindowWidth=400), dict(WindowCenter=40, WindowWidth='empty'),
    dict(RescaleSlope='empty', RescaleIntercept='empty'), dict(VOILUTFunction='empty'), dict(VOILUTSequence='empty'), dict(ModalityLUTSequence='empty'),
    dict(PixelPaddingValue='empty'), dict(NumberOfFrames='empty'), dict(VOILUTSequence=[]), dict(ModalityLUTSequence=[])))
def test_dicom_empty_tag_is_absent(tags, tmp_path):
    empty = {k: Sequence([]) if k.endswith('Sequence') else v for k,v in tags.items()}
    assert np.array_equal(read_image(put(tmp_path/'a', dicom(hu, **empty))), read_image(put(tmp_path/'b', dicom(hu))))

@pytest.mark.parametrize('w', (0,-400,-.5))
def test_dicom_window_without_a_width(w, tmp_path):
    "Is no window: the lowest and highest value count, or the next window that is one"
    for function in (None,'LINEAR_EXACT','SIGMOID'):
        got = read_image(put(tmp_path/'a', dicom(hu, WindowCenter=40, WindowWidth=w, VOILUTFunction=function)))
        assert np.array_equal(got, read_image(put(tmp_path/'b', dicom(hu))))
        for centres,widths in (([0,40],[w,400]),(['',40],[1,400]),([0,40],['',400])):
            got = read_image(put(tmp_path/'a', dicom(hu, WindowCenter=centres, WindowWidth=widths, VOILUTFunction=function)))
            assert np.array_equal(got, read_image(put(tmp_path/'b', dicom(hu, WindowCenter=40, WindowWidth=400, VOILUTFunction=function))))

@pytest.mark.parametrize('slope', (1e-3,1e-5,1e-9,1e-15,-1e-6))
def test_dicom_small_slope(slope, tmp_path):
    "However small the unit, with and without a window"
    n,sign = len(np.unique(hu)),np.sign(slope)
    got = read_image(put(tmp_path/'a', dicom(hu, RescaleSlope=slope, RescaleIntercept=0)))
    want = (sign*hu.astype(float)-(sign*hu.astype(float)).min())/np.ptp(hu.astype(float))
    assert len(np.unique(got))==n and abs(got/65535-want).max()<1e-4
    width = float(f'{2000*abs(slope):.6g}')
    got = read_image(put(tmp_path/'b', dicom(hu, RescaleSlope=slope, RescaleIntercept=0, WindowCenter=0, WindowWidth=width)))
    if width<=1: assert abs(got/65535-(sign*hu+1000)/2000).max()<1e-4  # the standard's formula for LINEAR needs more than 1
    got = read_image(put(tmp_path/'c', dicom(hu, RescaleSlope=slope, RescaleIntercept=0, WindowCenter=0, WindowWidth=width, VOILUTFunction='LINEAR_EXACT')))
    assert abs(got/65535-(sign*hu+1000)/2000).max()<1e-4
    assert np.array_equal(got, read_image(tmp_path/'a', window=(0,width)))

def test_dicom_slope_of_zero(tmp_path):
    with pytest.raises(ValueError, match='a.*rescale slope of 0'): read_image(put(tmp_path/'a', dicom(hu, RescaleSlope=0, RescaleIntercept=5)))

def test_dicom_large_intercept(tmp_path):
    "Single precision would leave a few values of them"
    a = np.arange(480, dtype=np.int16).reshape(24, 20)
    assert len(np.unique(read_image(put(tmp_path/'a', dicom(a, RescaleSlope=.001, RescaleIntercept=10**6)))))==480

def test_dicom_unknown_voi_function(tmp_path):
    fn = put(tmp_path/'a', dicom(hu, WindowCenter=40, WindowWidth=400, VOILUTFunction='LOG'))
    with pytest.raises(ValueError, match='a.*function LOG'): read_image(fn)
    assert read_image(fn, window=(40,400)).max()==65535

def add_padding(value, vr='SS', limit=None):
    "A change of a data set: the padding's tags, of the type that a vendor chose"
    def change(ds):
        ds.add_new(0x00280120, vr, value)
        if limit is not None: ds.add_new(0x00280121, vr, limit)
    return change

def changed(data, change):
    ds,f = pydicom.dcmread(io.BytesIO(data)),io.BytesIO()
    change(ds); ds.save_as(f)
    return f.getvalue()

@pytest.mark.parametrize('kind', ('MONOCHROME1','MONOCHROME2'))
@pytest.mark.parametrize('value,vr,limit,stored', ((-32768,'SS',None,[-32768]), (-2000,'SS',None,[-2000]), (63536,'US',None,[-2000]), (-32768,'SS',-32000,[-32768,-32100,-32000]), (-32000,'SS',-32768,[-32768,-32000]), (32767,'SS',None,[32767])))
def test_dicom_padding(value, vr, limit, stored, kind, tmp_path):
    "Does not count for the lowest and highest value, and is black"
    a = hu.copy(); a[:8] = np.resize(stored, (8,20))
    got = read_image(put(tmp_path/'a', changed(dicom(a, PhotometricInterpretation=kind), add_padding(value, vr, limit))))
    want = read_image(put(tmp_path/'b', dicom(a[8:].copy(), PhotometricInterpretation=kind)))
    assert np.array_equal(got[8:], want) and (got[:8]==0).all()
    windowed = read_image(put(tmp_path/'c', changed(dicom(a, PhotometricInterpretation=kind, WindowCenter=40, WindowWidth=400), add_padding(value, vr, limit))))
    assert np.array_equal(windowed[8:], read_image(put(tmp_path/'d', dicom(a[8:].copy(), PhotometricInterpretation=kind, WindowCenter=40, WindowWidth=400)))) and (windowed[:8]==0).all()

def test_dicom_that_is_all_padding(tmp_path):
    assert not read_image(put(tmp_path/'a', changed(dicom(np.full((24,20), -2000, np.int16)), add_padding(-2000)))).any()

@pytest.mark.parametrize('kind', ('MONOCHROME1','MONOCHROME2'))
@pytest.mark.parametrize('bits', (1,4,7,8))
def test_dicom_bits_stored_in_a_byte(bits, kind, tmp_path):
    "All of 0 to 255 by BitsStored"
    a = (np.arange(480).reshape(24, 20)%2**bits).astype(np.uint8)
    got = read_image(put(tmp_path/'a', dicom(a, BitsStored=bits, HighBit=bits-1, PhotometricInterpretation=kind)))
    share = a/(2**bits-1)
    assert got.dtype==np.uint8 and abs(got-(share if kind=='MONOCHROME2' else 1-share)*255).max()<=.5

@pytest.mark.parametrize('signed', (False,True))
@pytest.mark.parametrize('bits', (10,12,16))
def test_dicom_bits_stored_in_two_bytes(bits, signed, tmp_path):
    "Unused bits, which may hold an overlay, are no part of the value; the sign is the highest bit that is stored"
    low = -2**(bits-1) if signed else 0
    a = np.random.default_rng(5).integers(low, low+2**bits, (24,20)); a[0,:2] = low,low+2**bits-1
    stored = (a&(2**bits-1)).astype(np.uint16)
    if bits<16: stored |= np.uint16(1<<15)
    got = read_image(put(tmp_path/'a', dicom(stored, BitsStored=bits, HighBit=bits-1, PixelRepresentation=int(signed))))
    assert got.dtype==np.uint16 and abs(got-(a-low)*65535/(2**bits-1)).max()<=.51

@pytest.mark.parametrize('dtype,bits', ((np.uint8,6),(np.uint8,8),(np.uint16,8),(np.uint16,12),(np.uint16,16),(np.uint32,32)))
def test_dicom_colour_bits(dtype, bits, tmp_path):
    "uint8 or uint16, over the full range, in the byte order of this machine"
    a = np.random.default_rng(6).integers(0, 2**bits, (24,20,3)).astype(dtype)
    for syntax,stored in ((uid.ExplicitVRLittleEndian,a),(uid.ExplicitVRBigEndian,a.astype(a.dtype.newbyteorder('>')))):
        got = read_image(put(tmp_path/'a', dicom(stored, syntax, BitsStored=bits, HighBit=bits-1)))
        top = 255 if bits<=8 else 65535
        assert got.dtype==(np.uint8 if bits<=8 else np.uint16) and got.dtype.isnative and abs(got-a.astype(float)*top/(2**bits-1)).max()<=.5

def test_dicom_colours_that_are_no_rgb(tmp_path):
    "Their first three channels are not taken for red, green and blue"
    for kind in ('HSV','CMYK','ARGB','YBR_PARTIAL_422','XYB','MONOCHROME2'):
        with pytest.raises(ValueError, match=f'a .*{kind}'): read_image(put(tmp_path/'a', dicom(noise((24,20,3)), PhotometricInterpretation=kind)))

def test_dicom_ybr_of_16_bits(tmp_path):
    with pytest.raises(ValueError, match='a.*YBR_FULL colours of 16 bits'): read_image(put(tmp_path/'a', dicom(colour16, PhotometricInterpretation='YBR_FULL')))

def test_dicom_floats(tmp_path):
    a = np.random.default_rng(7).random((24,20), np.float32)*1e-7; a[0,0] = np.nan; a[0,1] = -np.inf
    bare = dicom(noise(depth=np.uint16), PixelData=None, BitsAllocated=32, BitsStored=None, HighBit=None, PixelRepresentation=None)
    got = read_image(put(tmp_path/'a', changed(bare, lambda ds: setattr(ds, 'FloatPixelData', a.tobytes()))))
    ok = np.isfinite(a)
    assert abs(got[ok]/65535-(a[ok]-a[ok].min())/np.ptp(a[ok])).max()<1e-4 and not got[~ok].any()

@pytest.mark.parametrize('where', ('SharedFunctionalGroupsSequence','PerFrameFunctionalGroupsSequence'))
def test_enhanced_dicom(where, tmp_path):
    "Rescale and window in the groups of the one frame"
    def change(ds):
        value,voi,group = Dataset(),Dataset(),Dataset()
        value.RescaleSlope,value.RescaleIntercept,value.RescaleType = 2,-1024,'HU'
        voi.WindowCenter,voi.WindowWidth = 40,400
        group.PixelValueTransformationSequence,group.FrameVOILUTSequence = Sequence([value]),Sequence([voi])
        setattr(ds, where, Sequence([group]))
    want = read_image(put(tmp_path/'b', dicom(hu, **ct, WindowCenter=40, WindowWidth=400)))
    assert np.array_equal(read_image(put(tmp_path/'a', changed(dicom(hu, NumberOfFrames=1), change))), want)
    empty = dict(RescaleSlope='empty', RescaleIntercept='empty', WindowCenter='empty', WindowWidth='empty')
    assert np.array_equal(read_image(put(tmp_path/'a', changed(dicom(hu, **empty), change))), want)
    with pytest.raises(ValueError, match='has 3 frames'): read_image(put(tmp_path/'a', changed(dicom(np.stack([hu]*3), NumberOfFrames=3), change)))

def test_dicom_frames_that_the_header_does_not_name(tmp_path):
    with pytest.raises(ValueError, match='a.*has 3 frames'): read_image(put(tmp_path/'a', dicom(hu, PixelData=np.stack([hu]*3).tobytes())))
    assert read_image(put(tmp_path/'b', dicom(noise((1,1)), PixelData=b'\7\0'))).tolist()==[[7]]   # padded to two bytes

@pytest.mark.parametrize('syntax', (uid.ImplicitVRLittleEndian,uid.ExplicitVRLittleEndian,uid.ExplicitVRBigEndian))
def test_dicom_without_preamble_or_suffix(syntax, tmp_path):
    "By its mark, else by its first tag or its name"
    stored = hu.astype('>i2' if syntax==uid.ExplicitVRBigEndian else '<i2')
    whole = dicom(stored, syntax, **ct, WindowCenter=40, WindowWidth=400)
    want = read_image(put(tmp_path/'a', whole))
    assert np.array_equal(want, read_image(put(tmp_path/'a', dicom(hu, **ct, WindowCenter=40, WindowWidth=400)))) and want.dtype.isnative
    start = 132+12+struct.unpack_from('<I', whole, 140)[0]  # after the file's own group 2
    for name in ('bare','bare.dcm','bare.DICOM'):
        for part in (whole[132:],whole[start:]):
            assert np.array_equal(read_image(put(tmp_path/name, part)), want)

def test_dicom_causes(tmp_path):
    "Cut off, damaged, no decoder, no image: each is said as it is"
    native = dicom(hu, **ct)
    for n in (len(native)-1,len(native)-900,len(native)-961):
        with pytest.raises(ValueError, match='cut.*ends before'): read_image(put(tmp_path/'cut', native[:n]))
    ds = pydicom.dcmread(io.BytesIO(dicom(noise((64,64))))); ds.compress(uid.RLELossless, encoding_plugin='pydicom'); ds.save_as(tmp_path/'rle')
    rle = (tmp_path/'rle').read_bytes()
    with pytest.raises(ValueError, match='cut.*ends before'): read_image(put(tmp_path/'cut', rle[:-900]))
    jpeg = encoded('.jpg', shape=(64,64))
    whole = dicom(noise((64,64)), uid.JPEGBaseline8Bit, PixelData=encapsulate([jpeg]))
    assert read_image(put(tmp_path/'jpeg', whole)).shape==(64,64)
    for n in (300,1500):  # in the file, and in the stream within a whole file
        with pytest.raises(ValueError, match='cut.*ends before'): read_image(put(tmp_path/'cut', whole[:-n]))
        with pytest.raises(ValueError, match='cut.*ends before'): read_image(put(tmp_path/'cut', dicom(noise((64,64)), uid.JPEGBaseline8Bit, PixelData=encapsulate([jpeg[:-n]]))))
    bad = jpeg.replace(b'\xff\xc0', b'\xff\xc3')
    with pytest.raises(ValueError, match='bad.*not decoded.*damaged'): read_image(put(tmp_path/'bad', dicom(noise((64,64)), uid.JPEGBaseline8Bit, PixelData=encapsulate([bad]))))
    with pytest.raises(ValueError, match='video.*MPEG.*does not know'): read_image(put(tmp_path/'video', dicom(noise((64,64)), uid.MPEG2MPML, PixelData=encapsulate([jpeg]))))
    if not pixels.get_decoder(uid.JPEGLSLossless).is_available:
        with pytest.raises(ValueError, match='no decoder.*pip install'): read_image(put(tmp_path/'ls', dicom(noise((64,64)), uid.JPEGLSLossless, PixelData=encapsulate([jpeg]))))
        with pytest.raises(ValueError, match='ends before'): read_image(put(tmp_path/'ls', dicom(noise((64,64)), uid.JPEGLSLossless, PixelData=encapsulate([jpeg[:-99]]))))

pydicom_files = sorted(o for o in (Path(pydicom.__file__).parent/'data'/'test_files').rglob('*') if o.is_file() and o.suffix in ('','.dcm'))
# what pydicom can't decode either, and why
causes = {'JPEG-lossy.dcm': 'damaged', 'JPEG2000-embedded-sequence-delimiter.dcm': 'damaged', 'MR_truncated.dcm': 'ends before', 'badVR.dcm': 'damaged',
          'JPGExtended.dcm': 'does not support.*pip install', 'GDCMJ2K_TextGBR.dcm': 'not decoded.*pip install', 'no_meta.dcm': 'not DICOM', 'README': 'not an image'}

def pydicom_shows(ds):
    "What pydicom makes of an image, as shares of its scale"
    a = ds.pixel_array
    if ds.PhotometricInterpretation=='PALETTE COLOR': a = pixels.apply_color_lut(a, ds)
    if a.ndim==3: return a/np.iinfo(a.dtype).max
    values = apply_modality_lut(a, ds)
    own = apply_voi_lut(values, ds)
    keep = a!=ds.get('PixelPaddingValue', None) if 'PixelPaddingValue' in ds else np.ones(a.shape, bool)
    if 'WindowWidth' in ds:
        lo,hi = (float(o) for o in apply_modality_lut(np.array([-2**(ds.BitsStored-1),2**(ds.BitsStored-1)-1] if ds.PixelRepresentation else [0,2**ds.BitsStored-1]), ds))
    elif a.dtype==np.uint8: lo,hi = 0,2**ds.BitsStored-1
    else: lo,hi = values[keep].min(),values[keep].max()
    share = np.clip((own-lo)/(hi-lo), 0, 1)
    return np.where(keep, 1-share if ds.PhotometricInterpretation=='MONOCHROME1' else share, 0)

@quiet
@pytest.mark.skipif(not pydicom_files, reason="pydicom's test files are not installed")
@pytest.mark.parametrize('fn', pydicom_files, ids=lambda o: f'{o.parent.name}/{o.name}')
def test_files_of_pydicom(fn):
    "Each as pydicom shows it, or an error with the cause"
    try: got = read_image(fn)
    except ValueError as e:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            ds = pydicom.dcmread(fn, force=True)
        if fn.name in causes: cause = causes[fn.name]
        elif 'PixelData' not in ds: cause = 'without an image|lost its pixels'
        elif 'PhotometricInterpretation' not in ds: cause = 'damaged.*PhotometricInterpretation'
        elif int(ds.get('NumberOfFrames') or 1)>1: cause = f'has {ds.NumberOfFrames} frames'
        else: cause = 'no decoder for it is installed'; assert not pixels.get_decoder(ds.file_meta.TransferSyntaxUID).is_available
        assert re.search(cause, str(e)), cause
    else:
        assert got.dtype in (np.uint8,np.uint16) and got.dtype.isnative
        want = pydicom_shows(pydicom.dcmread(fn, force=True))
        assert got.shape==want.shape and abs(got/np.iinfo(got.dtype).max-want).max()<1e-3

def test_without_pydicom(tmp_path, monkeypatch):
    fn = put(tmp_path/'a.dcm', dicom(hu))
    monkeypatch.setitem(sys.modules, 'pydicom', None)
    with pytest.raises(ImportError, match=r'a\.dcm.*ols_fastai\[dicom\]'): read_image(fn)

## Damage

files = {'png': encoded('.png'), 'png16': encoded('.png', np.uint16), 'colour': encoded('.png', shape=(24,20,3)), 'jpg': encoded('.jpg'),
         'progressive': encoded('.jpg', shape=(24,20,3), args=(cv2.IMWRITE_JPEG_PROGRESSIVE,1)), 'bmp': encoded('.bmp'), 'tiff': encoded('.tiff'), 'tiff16': encoded('.tiff', np.uint16),
         'deflate': pil(noise(), 'TIFF', compression='tiff_deflate'), 'dicom': dicom(hu, **ct, WindowCenter=40, WindowWidth=400), 'dicom8': dicom(noise((24,20,3)))}
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
    with pytest.raises(ValueError, match='a.img.*claims to have (40000 x 40000|too many pixels .*1600000000)'): read_image(fn)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 24*20//2)
    assert read_image(put(fn, files[kind])).shape[:2]==(24,20)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 24*20//2-1)
    with pytest.raises(ValueError, match='claims to have (20 x 24|too many pixels .*480)'): read_image(fn)

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

@quiet
def test_cut_off_is_what_is_said(tmp_path):
    "Wherever it was cut, once the format can be known; a TIFF may have its list of pages first or last"
    first = {f'first{i}': tiff(grey16, photometric=o) for i,o in enumerate(('minisblack','miniswhite'))}
    first['planes'] = tiff(np.ascontiguousarray(colour16.transpose(2,0,1)), photometric='rgb', planarconfig='separate')
    for kind,data in {**files, **first}.items():
        if kind.startswith('dicom'): continue
        for n in range(12, len(data)-12, max(1, len(data)//40)):
            with pytest.raises(ValueError, match='a.img.*ends before'): read_image(put(tmp_path/'a.img', data[:n]))
    for n in range(140, len(files['dicom']), 60):
        with pytest.raises(ValueError, match='a.dcm.*ends before'): read_image(put(tmp_path/'a.dcm', files['dicom'][:n]))

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

## Resizing

@pytest.mark.parametrize('shape', ((2000,200),(200,2000),(2000,400),(300,100),(100,300),(2000,2000)))
@pytest.mark.parametrize('size', (224,(224,448),(448,224),(150,700)))
@pytest.mark.parametrize('depth', (np.uint8,np.uint16))
def test_resize_has_no_aliasing(shape, size, depth):
    "Noise keeps the deviation that averaging along the sides that shrink leaves, whatever the other side does"
    a = noise(shape, depth)
    got = np.asarray(CVResize(size)(CVImage.create(a))).astype(float)
    want = a.astype(float)
    h,w = size if isinstance(size, tuple) else (size,size)
    for axis,n in ((0,h),(1,w)):  # averages of areas by running sums, and nothing where it grows
        m = want.shape[axis]
        if n>=m: continue
        sums = np.concatenate([np.zeros_like(want.take([0], axis)), want.cumsum(axis)], axis)
        at = np.linspace(0, m, n+1)
        below = np.minimum(at.astype(int), m-1)
        part = (at-below).reshape(-1, 1) if axis==0 else at-below
        edges = sums.take(below, axis)*(1-part)+sums.take(below+1, axis)*part
        want = np.diff(edges, axis=axis)*n/m
    if want.shape==(h,w): assert abs(got-want).max()<=np.iinfo(depth).max/255*1.01
    assert got.std()<=want.std()*1.02

def test_resize_of_one_kind_is_one_step():
    "Where both sides shrink, or none does, the pixels are those of OpenCV's own areas or lines"
    for shape in ((300,400),(224,400),(300,400,3)):
        a = noise(shape)
        assert np.array_equal(CVResize(224)(CVImage.create(a)), cv2.resize(a, (224,224), interpolation=cv2.INTER_AREA))
    for shape in ((100,200),(224,100)):
        a = noise(shape)
        assert np.array_equal(CVResize(224)(CVImage.create(a)), cv2.resize(a, (224,224), interpolation=cv2.INTER_LINEAR))

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

## fastai's transforms, and one channel

def tiny(channels): return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))

@pytest.mark.parametrize('channels', (3,1))
@pytest.mark.parametrize('item_tfms', (None,[RandomResizedCrop(24, min_scale=.5),FlipItem()]))
def test_augmented_training_to_a_loaded_learner(image_dls, tmp_path, channels, item_tfms):
    "aug_transforms, MixUp and RandomErasing, on images of all modes; then export, load and predict a file"
    from ols_fastai.data.folders import read_folder
    from ols_fastai.data.loaders import image_dls as table_dls
    from ols_fastai.data.splits import split_by_group
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20,30,4)).astype(np.uint8)).save(image_dls.path/'light shoulder/rgba.png')
    df = split_by_group(read_folder(image_dls.path), 'filename', valid=.3, test=0)
    kwargs = {} if item_tfms else dict(size=24, crop=.8)
    dls = table_dls(df, root=image_dls.path, bs=4, num_workers=0, device='cpu', channels=channels, item_tfms=item_tfms, batch_tfms=[*aug_transforms(do_flip=False), RandomErasing()], **kwargs)
    x,y = dls.one_batch()
    assert x.shape[:2]==(4,channels) and x.dtype==torch.float32
    learn = Learner(dls, tiny(channels), metrics=accuracy, cbs=MixUp(), path=tmp_path)
    learn.remove_cb(ProgressCallback); learn.logger = noop
    learn.fit(2, .01)
    valid = [torch.cat([x for x,_ in dls.valid]) for _ in range(2)]
    assert torch.equal(*valid), 'nothing is drawn for validation'
    fn = image_dls.path/'light shoulder/3.png'
    learn.export(tmp_path/'learn.pkl')
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); again = load_learner(tmp_path/'learn.pkl')
    again.remove_cb(ProgressCallback)
    assert torch.equal(again.predict(fn)[2], learn.predict(fn)[2])
    assert dls.test_dl([fn, image_dls.path/'light shoulder/rgba.png']).one_batch()[0].shape[1]==channels

def test_pretrained_stats_of_one_channel():
    grey = pretrained_stats('resnet50', channels=1)
    assert np.allclose(grey, ([.449],[.226])) and pretrained_stats('resnet50', grey, channels=1)==grey
    with pytest.raises(ValueError, match='resnet50'): pretrained_stats('resnet50', ([.5],[.5]), channels=1)

def test_twelve_bits_in_sixteen_are_said_and_a_window_is_heard(tmp_path):
    a = np.full((9,9), 4000, np.uint16)
    Image.fromarray(a).save(tmp_path/'a.png')
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        for o in (tmp_path/'a.png',a): CVImage.create(o)
        assert len(said)==2 and all('no value above 4095' in str(o.message) for o in said)
        CVImage.create(tmp_path/'a.png', window=(2048,4096))
        CVImage.create(a+5000)
        assert len(said)==2
    with pytest.raises(ValueError, match='no pixels'): CVImage.create(np.zeros((0,0), np.uint8))
