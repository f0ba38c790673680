# Images on their way through a codec, block by block: of every value its table, and what it means for those after it.

# A table has integers of 24 bits, of at least 1.
const TABLE_TOTAL = 2^24

"""
Images of one block on their way through a codec, to be encoded or decoded side by side: `X` `(values of an image, images)`; `symbol`, of each image,
is what the last table coded, and `table`, (entries, images), has the weights of what the last or the next one codes. A job answers `hasbegun`, `start!`,
`hasended`, `fill_table!`, `own_symbols!` and `take_symbols!`; [`next_table!`](@ref) and [`next_tables!`](@ref) do the rest.
"""
abstract type CodingJob end

num_images(job::CodingJob) = size(job.X, 2)

"""
    Coding(coder, X; decode)

The images of one block, `X` `(values of an image, images)`: patch after patch, in the order of the positions, a patch's channels interleaved.
To be encoded, or to be filled where `decode`. [`next_table!`](@ref) does the work.
"""
mutable struct Coding <: CodingJob
    coder::Coder
    X::Matrix{Int32}
    decode::Bool
    prior::Vector{CodingTile{Float64}} # of 16 images each
    fields::Vector{CodingFieldImage}
    state::Matrix{Float64}          # p(h_i | coded patches), (states, images)
    patch::Vector{CodingPatch}      # of each image
    rows::Vector{Vector}            # for each channel of each kind of position, of each circuit
    position::Int                   # how many have begun
    channel::Int
    variable::Int
    fine::Bool                      # the next table is that of the values in a group
    group::Vector{Int}              # of each image: the group that its value is in
    symbol::Vector{Int}             # of each image: what the last table coded
    table::Matrix{Float64}          # weights of what the last table codes, (entries, images)
end

function Coding(c::Coder, X::Matrix{Int32}, decode::Bool)
    N, P = size(X, 2), length(c.positions)
    size(X, 1) == P * patch_size(c) || throw(DimensionMismatch("X: found $(size(X, 1)) values of an image, wanted $(P * patch_size(c))"))
    prior = CodingTile{Float64}[CodingTile(c.prior) for _ in 1:(c.prior isa CodingPlan ? cld(N, LANES) : 0)]
    fields = CodingFieldImage[CodingFieldImage(c.prior) for _ in 1:(c.prior isa CodingField ? N : 0)]
    rows = Vector[no_rows(channel) for own in c.channels for channel in own]
    return Coding(c, X, decode, prior, fields, ones(num_states(c), N), [CodingPatch(c) for _ in 1:N], rows, 0, 0, 0, false,
                  zeros(Int, N), zeros(Int, N), zeros(widest_table(c), N))
end

no_rows(c::CodingChannel{T}) where {T} = [CodingRows{T}() for _ in c.plans]

hasbegun(job::Coding) = job.position > 0
start!(job::Coding) = begin_patch!(job)
hasended(job::Coding) = job.position > length(job.coder.positions)
here(job::Coding) = job.coder.positions[job.position]
channel(job::Coding) = channels(job.coder, here(job))[job.channel]

"The rows of the channel that is being coded."
function rows(job::Coding)
    own = length(job.coder.channels) == 1 ? 0 : here(job) - 1
    return job.rows[own * length(channels(job.coder, 1)) + job.channel]
end

"The row of `X` that holds a variable of the patch that is being coded."
function place(job::Coding)
    count = length(channels(job.coder, 1))
    return (here(job) - 1) * patch_size(job.coder) + (channel(job).order[job.variable] - 1) * count + job.channel
end

"""
    next_table!(out, job, symbols) -> entries

The table of the next symbols, one for each image, Float64 `(entries, images)` of integers that sum to 2^24: at the start of `out`; 0 at the end.
`symbols`: those of the last table, from 0, where the job decodes. Tables of one entry are left out.
"""
function next_table!(out::Vector{Float64}, job::CodingJob, symbols::Vector{Int32})
    if !hasbegun(job)
        start!(job)
    elseif !hasended(job)
        job.decode ? copyto!(job.symbol, symbols) : own_symbols!(job)
        take_symbols!(job)
    end
    while !hasended(job)
        m = fill_table!(job)
        if m > 1
            quantise!(out, job.table, m)
            return m
        end
        fill!(job.symbol, 0)
        take_symbols!(job)
    end
    return 0
end

"""
    next_tables!(out, symbols, sizes, job) -> tables

As many of the next tables of a job that encodes as there is room for, one after another in `out`, with their numbers of entries in `sizes` and what
the images have for them, `(images, tables)`, in `symbols`. 0 at the end.
"""
function next_tables!(out::Vector{Float64}, symbols::Matrix{Int32}, sizes::Vector{Int32}, job::CodingJob)
    count, N = 0, num_images(job)
    table = Vector{Float64}(undef, size(job.table, 1) * N)
    while count < length(sizes)
        m = next_table!(table, job, NO_SYMBOLS)
        m == 0 && break
        count += 1
        own_symbols!(job)
        copyto!(out, (count - 1) * length(table) + 1, table, 1, m * N)
        symbols[:, count], sizes[count] = job.symbol, m
        pause()
    end
    return count
end

const NO_SYMBOLS = Int32[]

"The weights of the next table; how many entries it has."
function fill_table!(job::Coding)
    own, found = channel(job), rows(job)
    return job.fine ? fill_values!(job, own, found) : fill_groups!(job, own, found)
end

"What the images that are encoded have for the last table."
function own_symbols!(job::Coding)
    row, group = place(job), channel(job).group
    for n in 1:num_images(job)
        g, i = divrem(Int(job.X[row, n]), group)
        job.symbol[n] = job.fine ? i : g
    end
end

"Goes on with the symbols of the last table."
function take_symbols!(job::Coding)
    if !job.fine
        copyto!(job.group, job.symbol)
        job.fine = true
        return
    end
    own, row = channel(job), place(job)
    possible = [job.table[job.symbol[n] + 1, n] > 0 for n in 1:num_images(job)]
    for n in 1:num_images(job)
        x = job.group[n] * own.group + job.symbol[n]
        x < own.categories || throw(ArgumentError("the stream holds value $x, wanted 0..$(own.categories - 1)"))
        job.X[row, n] = x
    end
    job.fine = false
    step = isanchored(own) && job.variable == 1 ? begin_rows! : know_value!
    step(job, own, rows(job), possible)
    job.variable += 1
    job.variable <= length(own.order) && return
    end_channel!(job, own, rows(job))
    if job.channel < length(channels(job.coder, here(job)))
        begin_channel!(job, job.channel + 1)
    else
        end_patch!(job)
        begin_patch!(job)
    end
    return
end

"""
Turns weights of `m` entries, at least 0, into integers of at least 1 that sum to `TABLE_TOTAL`. Their shares are rounded down as running sums,
which ascend, so that the last is exact.
"""
function quantise!(out::Vector{Float64}, table::Matrix{Float64}, m::Int)
    room = Float64(TABLE_TOTAL - m)
    @inbounds for n in axes(table, 2)
        total = 0.0
        for i in 1:m
            total += table[i, n]
        end
        sum, before = 0.0, 0.0
        for i in 1:m
            sum = total < TINY ? Float64(i) : sum + table[i, n]
            until = floor(sum / (total < TINY ? Float64(m) : total) * room)
            out[(n - 1) * m + i] = until - before + 1.0
            before = until
        end
    end
end

# Patches and channels.

"p(h_i | coded patches) of the next position, and nothing is known of its patch."
function begin_patch!(job::Coding)
    job.position += 1
    hasended(job) && return
    fill_state!(job, job.coder.prior)
    on_tiles(n -> begin_joins!(job.patch[n], job.coder, job.state[:, n]), num_images(job))
    begin_channel!(job, 1)
end

"p(h_i | coded patches): into `job.state`."
fill_state!(job::Coding, ::Nothing) = nothing

function fill_state!(job::Coding, plan::CodingPlan{Float64})
    one = HeadWeights{Float64}(ones(LANES, 1), zeros(Int32, LANES))
    on_tiles(length(job.prior)) do t
        follow!(job.prior[t], plan, plan.steps[job.position], one)
        for n in images_of_tile(job, t)
            all_weights!(view(job.state, :, n), job.prior[t], plan, here(job), n - (t - 1) * LANES)
            normalise_weights!(view(job.state, :, n))
        end
    end
end

function fill_state!(job::Coding, f::CodingField)
    on_tiles(num_images(job)) do n
        job.fields[n].places[here(job)] = Vector{Int}[]
        predict!(f, job.fields[n], here(job), 1)
        for h in axes(job.state, 1)
            job.state[h, n] = sum_in_order(view(job.fields[n].next, :, h))
        end
        normalise_weights!(view(job.state, :, n))
    end
end

images_of_tile(job, t) = (t - 1) * LANES + 1:min(t * LANES, num_images(job))

"Work in parts that do not depend on one another, shared among the threads: one part needs none of them to wake up."
function on_tiles(f, n::Int)
    (n == 1 || Threads.nthreads() == 1) && return foreach(f, 1:n)
    Threads.@threads for t in 1:n
        f(t)
    end
end

"Weights of the offsets and joins of a channel, given all that is coded."
function begin_channel!(job::Coding, c::Int)
    job.channel, job.variable, job.fine = c, 1, false
    own = channel(job)
    on_tiles(n -> weigh!(job, n, own, job.coder.prior), num_images(job))
    isanchored(own) || begin_rows!(job, own, rows(job), fill(false, num_images(job)))
end

function weigh!(job::Coding, n, own::CodingChannel, prior)
    patch, state = job.patch[n], job.state[:, n]
    job.coder.join === nothing ? copyto!(patch.weight, state) : weigh!(patch, own.shift, state, job.coder)
end

function weigh!(job::Coding, n, own::CodingChannel, f::CodingField)
    image = job.fields[n]
    job.channel == 1 || predict!(f, image, here(job), job.channel)
    state = [sum_in_order(view(image.next, :, h)) for h in axes(image.next, 2)]
    total = sum_in_order(state)
    for h in eachindex(state)
        share = state[h]
        state[h] = share < LEAST_SHARE * total ? 0.0 : 1.0
    end
    weigh!(job.patch[n], image.next, state, job.coder)
end

"Tells p(h) what the patch says of its state."
function end_patch!(job::Coding)
    end_patch!(job, job.coder.prior)
end

end_patch!(::Coding, ::Nothing) = nothing

function end_patch!(job::Coding, plan::CodingPlan{Float64})
    on_tiles(length(job.prior)) do t
        for n in images_of_tile(job, t)
            know_softly!(job.prior[t], plan, here(job), n - (t - 1) * LANES, evidence(job.patch[n], job.coder))
        end
    end
end

function end_patch!(job::Coding, f::CodingField)
    on_tiles(num_images(job)) do n
        values = reshape(evidence(job.patch[n], job.coder), num_states(f.field), :)
        know_position!(f, job.fields[n], here(job), any(>(0), values) ? values : fill!(values, 1.0))
    end
end
