"""Pictures in and out: the only place that knows codecs.

image        the interface: samples, facts of the header, metadata, a picture of them
page         what an encoder is given
limits       what each format holds and each encoder takes: numbers alone

sandbox      decoders in processes that can be killed singly
child        the program of such a process
wire         what the two say to each other
decode       a file's bytes to a picture: facts, policy, samples, metadata
header       facts of each format, before anything is decoded
read_png, read_tiff, jpeg, jpeg2000, jp2_channels, webp, gif, pnm
             a format's header, and its samples where no library has them as they are stored
tiff_parts   the strips and tiles of a TIFF
ifd          directories of tags: of TIFF, its tags, EXIF and cameras' further pictures
levels       full range, straight alpha, the right way up
colour       CMYK and Lab to sRGB
profiles     what a colour profile is for, and sRGB's

metadata     what a file says beside its samples, read, and made true of the result
blocks       where it stands in each format
png_blocks, jpeg_blocks
             the same of PNG and JPEG
found        what was found of it, within a limit
walk         the blocks that files are made of: for headers, metadata and samples alike
png_text     PNG's texts
tiff_tags    what a TIFF's tags say
exif, xmp    what EXIF and XMP say
exif_edit, xmp_edit
             the same, corrected in its place
xmp_stale    what XMP says of the old pixels and file

encode       pages to a file's bytes
png, tiff    the project's own writers
containers   metadata put into PNG, JPEG and WebP

consistency  how a result agrees with its source
delta_e      differences of colours as people see them
reduce       a part of a picture's reduction, for training
"""
