# A model of windows as a codec: pixel after pixel, its channels given those before them and the window's pixels.

# A value of a pixel's channel is coded in two steps: its group of so many of the 256 values, and where it is in there.
const LEVELS = 256
const LEVELS_OF_GROUP = coding_group(LEVELS)
const LEVEL_GROUPS = LEVELS ÷ LEVELS_OF_GROUP

"""
    WindowCoder(circuit, windows)

The codec of a model of windows, `circuit` over the values of a window. As those over whole images, it needs
Float64: neighbours may say far more than 2^60 against each other.
"""
struct WindowCoder
    windows::Windows
    plan::CodingPlan{Float64}
    heads::HeadWeights{Float64}
end

function WindowCoder(c::Circuit, w::Windows)
    V = num_values(w)
    c.num_vars == V || throw(ArgumentError("circuit: found $(c.num_vars) variables, want the $V values of a window"))
    all(==(LEVELS), category_limits(c)) || throw(ArgumentError("circuit: want $LEVELS categories of all variables"))
    num_heads(c) == 1 || throw(ArgumentError("circuit: found $(num_heads(c)) heads, want 1"))
    plan = CodingPlan(c, Layout(c), collect(1:V), LEVELS_OF_GROUP, Float64; given=num_given(w))
    return WindowCoder(w, plan, HeadWeights{Float64}(ones(LANES, 1), zeros(Int32, LANES)))
end

num_image_values(c::WindowCoder) = num_pixels(c.windows) * c.windows.channels
widest_table(::WindowCoder) = max(LEVELS_OF_GROUP, LEVEL_GROUPS)
image_bytes(c::WindowCoder) = tile_bytes(c.plan) ÷ LANES + 4 * num_image_values(c)

"""
    WindowCoding(coder, X; decode)

The images of one block, `X` `(values of an image, images)`, a pixel's channels together: pixel after pixel.
"""
mutable struct WindowCoding <: CodingJob
    coder::WindowCoder
    X::Matrix{Int32}
    decode::Bool
    tiles::Vector{CodingTile{Float64}}      # of 16 images each
    window::Matrix{Int32}                   # (images of all tiles, values), UNKNOWN where there is no image
    groups::Vector{Matrix{Float64}}         # (rows, groups)
    values::Vector{Matrix{Float64}}         # (values of a group, rows)
    pixel::Int                              # from 1
    channel::Int
    fine::Bool                              # the next table is that of the values in a group
    group::Vector{Int}
    symbol::Vector{Int}
    table::Matrix{Float64}
end

function WindowCoding(c::WindowCoder, X::Matrix{Int32}, decode::Bool)
    N = size(X, 2)
    size(X, 1) == num_image_values(c) || throw(DimensionMismatch("X: found $(size(X, 1)) values of an image, want $(num_image_values(c))"))
    T = cld(N, LANES)
    return WindowCoding(c, X, decode, [CodingTile(c.plan) for _ in 1:T], fill(UNKNOWN, LANES * T, num_values(c.windows)),
                        [zeros(LANES, LEVEL_GROUPS) for _ in 1:T], [zeros(LEVELS_OF_GROUP, LANES) for _ in 1:T], 0, 0, false,
                        zeros(Int, N), zeros(Int, N), zeros(widest_table(c), N))
end

hasbegun(job::WindowCoding) = job.pixel > 0
hasended(job::WindowCoding) = job.pixel > num_pixels(job.coder.windows)
variable(job::WindowCoding) = num_given(job.coder.windows) + job.channel
place(job::WindowCoding) = (job.pixel - 1) * job.coder.windows.channels + job.channel
rows_of_tile(t) = (t - 1) * LANES + 1:t * LANES

"The pixel's reference level in image `n`."
reference(job::WindowCoding, n) = Int(job.window[n, length(job.coder.windows.seen) + job.channel])

start!(job::WindowCoding) = begin_pixel!(job)

"What is known of the next pixel's window."
function begin_pixel!(job::WindowCoding)
    job.pixel, job.channel = job.pixel + 1, 1
    hasended(job) && return
    w, plan = job.coder.windows, job.coder.plan
    y, x = divrem(job.pixel - 1, w.width)
    on_tiles(length(job.tiles)) do t
        far = distances(w)
        for n in images_of_tile(job, t)
            given!(view(job.window, n, :), far, w, job.X, n, y, x)
        end
        for v in 1:num_values(w)
            know!(job.tiles[t], plan, v, view(job.window, rows_of_tile(t), v))
        end
    end
end

function fill_table!(job::WindowCoding)
    v, plan, fine = variable(job), job.coder.plan, job.fine
    on_tiles(length(job.tiles)) do t
        tile, images = job.tiles[t], images_of_tile(job, t)
        if fine
            groups = ones(Int, LANES)
            groups[1:length(images)] .= view(job.group, images) .+ 1
            value_weights!(job.values[t], tile, plan, v, groups)
        else
            follow!(tile, plan, plan.steps[v], job.coder.heads)
            group_weights!(job.groups[t], tile, plan, v)
        end
        for (l, n) in enumerate(images), i in axes(job.table, 1)
            @inbounds job.table[i, n] = fine ? job.values[t][i, l] : job.groups[t][l, i]
        end
    end
    return size(job.table, 1)
end

function own_symbols!(job::WindowCoding)
    row = place(job)
    for n in 1:num_images(job)
        g, i = divrem(residual(Int(job.X[row, n]), reference(job, n)), LEVELS_OF_GROUP)
        job.symbol[n] = job.fine ? i : g
    end
end

function take_symbols!(job::WindowCoding)
    job.fine = !job.fine
    if job.fine
        copyto!(job.group, job.symbol)
        return
    end
    row, v = place(job), variable(job)
    for n in 1:num_images(job)
        r = job.group[n] * LEVELS_OF_GROUP + job.symbol[n]
        job.X[row, n] = of_residual(r, reference(job, n))
        job.window[n, v] = job.table[job.symbol[n] + 1, n] > 0 ? r : UNKNOWN
    end
    if job.channel < job.coder.windows.channels
        on_tiles(t -> know!(job.tiles[t], job.coder.plan, v, view(job.window, rows_of_tile(t), v)), length(job.tiles))
        job.channel += 1
    else
        job.window[:, num_given(job.coder.windows) + 1:end] .= UNKNOWN
        begin_pixel!(job)
    end
    return
end

"""
    draw_pixels!(X, hidden, coder, seed, first)

Draws the pixels that are `hidden`, `(pixels, images)`, each given all that come before it: into `X`, Int32 `(values of an image, images)`, which has the
others. The n-th image has the stream of random numbers of number `first` + n.
"""
function draw_pixels!(X::Matrix{Int32}, hidden::Matrix{Bool}, coder::WindowCoder, seed, first)
    job, N = WindowCoding(coder, X, true), size(X, 2)
    size(hidden) == (num_pixels(coder.windows), N) || throw(DimensionMismatch("hidden: want ($(num_pixels(coder.windows)), $N)"))
    streams = [SplitMix(seed, first + n) for n in 1:N]
    start!(job)
    while !hasended(job)
        fill_table!(job)
        own_symbols!(job)
        for n in 1:N
            hidden[job.pixel, n] && (job.symbol[n] = drawn(streams[n], view(job.table, :, n)) - 1)
        end
        take_symbols!(job)
        pause()
    end
    return
end

"The number, from 1, of one of the entries of a table, by their weights; where all are 0, each is as likely."
function drawn(stream::SplitMix, weights)
    total = sum_in_order(weights)
    total > 0 || return below!(stream, length(weights))
    left = uniform!(stream) * total
    for i in eachindex(weights)
        left -= weights[i]
        left < 0 && return i
    end
    return something(findlast(>(0), weights), length(weights))
end
