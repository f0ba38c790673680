# Images as windows: each pixel beside those near it that come before it, row after row (docs/windows.md).

# What a value that is not known has in its place.
const UNKNOWN = Int32(-1)

"""
    Windows(height, width, channels, reach, weights, whole=false)

The windows of images: a pixel and its neighbours, those of the pixels before it, row after row, that are at most `reach` rows above and `reach`
columns to a side. All values of a window are 0..255:

1. of the neighbours beside the pixel all channels' *residuals*: how far they are from the pixel's reference level, plus 128, modulo 256; of those two
   to the left and two above, if they are within reach, the first channel's; of all neighbours all channels' if `whole`. Unknown outside the image;
2. the *reference levels* of the channels, what the pixel is expected to be;
3. the pixel's row and column, in `PLACES` parts of an image that has more;
4. the pixel's own residuals, which say its values.

A reference level is the median of left, above, and left + above - above left (Weinberger, Seroussi and Sapiro 2000), all on the circle of 256 levels; on
the image's edge the one neighbour that there is, and 0 for the first pixel. To it is added a weighted sum of how far all neighbours' channels are from
their medians, of those inside the image: `weights`, Int32 (neighbours' values, channels), in units of 1 / `WEIGHT_UNIT`. In integers throughout, so that
all machines have the same.
"""
struct Windows
    height::Int
    width::Int
    channels::Int
    before::Vector{Tuple{Int,Int}}  # neighbours, as (rows below, columns right) of the pixel
    seen::Vector{Int}               # which of their values a window has
    weights::Matrix{Int32}
end

function Windows(height::Integer, width::Integer, channels::Integer, reach::Integer, weights::Matrix{Int32}, whole::Bool=false)
    before = [(dy, dx) for dy in -reach:0 for dx in -reach:reach if (dy, dx) < (0, 0)]
    wanted = (length(before) * channels, channels)
    size(weights) == wanted || throw(DimensionMismatch("weights: found $(size(weights)), want $wanted"))
    seen = [(i - 1) * channels + c for (i, at) in enumerate(before) for c in 1:channels if whole || isseen(at, c)]
    return Windows(height, width, channels, before, seen, weights)
end

isseen((dy, dx), c) = max(abs(dy), abs(dx)) == 1 || c == 1 && (dy, dx) in ((0, -2), (-2, 0))

const PLACES = 32
const WEIGHT_UNIT = 4096

num_pixels(w::Windows) = w.height * w.width

"How many of a window's values are known before the pixel's own."
num_given(w::Windows) = length(w.seen) + w.channels + 2

"How many values a window has."
num_values(w::Windows) = num_given(w) + w.channels

@inline signed_level(x::Int) = (x + 128) & 255 - 128
@inline residual(x::Int, reference::Int) = (x - reference + 128) & 255
@inline of_residual(r::Int, reference::Int) = (r + reference - 128) & 255

"Channel `c` of pixel (y, x) of the n-th image of `X`, `(values, images)`; but for images, all count from 0."
@inline level(w::Windows, X, n, y, x, c) = Int(@inbounds X[1 + (y * w.width + x) * w.channels + c, n])

@inline function median_level(w::Windows, X, n, y, x, c)
    y == 0 && return x == 0 ? 0 : level(w, X, n, y, x - 1, c)
    above = level(w, X, n, y - 1, x, c)
    x == 0 && return above
    left = level(w, X, n, y, x - 1, c)
    rise, slope = signed_level(above - left), signed_level(above - level(w, X, n, y - 1, x - 1, c))
    return (left + clamp(slope, min(0, rise), max(0, rise))) & 255
end

@inline part_of_image(at, length) = Int32(length > PLACES ? at * PLACES ÷ length : at)

# How far a neighbour outside the image is.
const OUTSIDE = typemin(Int32)

"Room for how far a window's neighbours are."
distances(w::Windows) = Vector{Int32}(undef, size(w.weights, 1))

"""
What is known of the window of pixel (y, x) before its own values: into the first of `window`; the levels of pixels before it are read from `X`. `far`:
[`distances`](@ref), to work in.
"""
function given!(window::AbstractVector{Int32}, far::Vector{Int32}, w::Windows, X, n, y, x)
    C, S = w.channels, length(w.seen)
    @inbounds for c in 1:C
        window[S + c] = median_level(w, X, n, y, x, c - 1)
    end
    @inbounds for (i, (dy, dx)) in enumerate(w.before)
        inside = y + dy >= 0 && 0 <= x + dx < w.width
        for c in 1:C
            far[(i - 1) * C + c] = inside ? signed_level(level(w, X, n, y + dy, x + dx, c - 1) - Int(window[S + c])) : OUTSIDE
        end
    end
    @inbounds for c in 1:C
        move = weighted_move(far, w, c)
        window[S + c] = (window[S + c] + move) & 255
        for (i, v) in enumerate(w.seen)
            (v - c) % C == 0 && (window[i] = far[v] == OUTSIDE ? UNKNOWN : residual(Int(far[v]), move))
        end
    end
    @inbounds window[S + C + 1], window[S + C + 2] = part_of_image(y, w.height), part_of_image(x, w.width)
    return window
end

@inline function weighted_move(far, w::Windows, c)
    sum = WEIGHT_UNIT ÷ 2
    @inbounds for v in eachindex(far)
        sum += far[v] == OUTSIDE ? 0 : Int(w.weights[v, c]) * Int(far[v])
    end
    return fld(sum, WEIGHT_UNIT)
end

"""
    window_rows!(rows, outside, windows, X, pixels)

The windows of `pixels`, from 0, through the images of `X`, UInt8 `(values of an image, images)`, image after image, a pixel's channels together: into
`rows`, UInt8 `(values of a window, pixels)`; `outside` is true where a neighbour is outside the image, and the value 0.
"""
function window_rows!(rows::Matrix{UInt8}, outside::Matrix{Bool}, w::Windows, X::Matrix{UInt8}, pixels::Vector{Int64})
    V, P, threads = num_values(w), num_pixels(w), Threads.nthreads()
    size(rows) == size(outside) == (V, length(pixels)) || throw(DimensionMismatch("rows, outside: want ($V, $(length(pixels)))"))
    size(X, 1) == P * w.channels || throw(DimensionMismatch("X: found $(size(X, 1)) values of an image, want $(P * w.channels)"))
    all(p -> 0 <= p < P * size(X, 2), pixels) || throw(ArgumentError("pixels: want 0..$(P * size(X, 2) - 1)"))
    in_pieces(eachindex(pixels); steps=V, threads=threads) do some
        Threads.@threads for t in 1:threads
            window, far = Vector{Int32}(undef, V), distances(w)
            for i in first(some) + t - 1:threads:last(some)
                window_row!(rows, outside, i, w, X, pixels[i], window, far)
            end
        end
    end
    return
end

function window_row!(rows, outside, i, w::Windows, X, pixel, window, far)
    image, at = divrem(pixel, num_pixels(w))
    n, (y, x), G = Int(image) + 1, divrem(Int(at), w.width), num_given(w)
    given!(window, far, w, X, n, y, x)
    @inbounds for v in 1:G
        outside[v, i] = window[v] == UNKNOWN
        rows[v, i] = outside[v, i] ? 0x00 : window[v] % UInt8
    end
    @inbounds for c in 1:w.channels
        outside[G + c, i] = false
        rows[G + c, i] = residual(level(w, X, n, y, x, c - 1), Int(window[length(w.seen) + c])) % UInt8
    end
end
