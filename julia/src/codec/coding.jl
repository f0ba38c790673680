# Images on their way through a codec, block by block: of every value its table, and what it means for those after it.

# A table has integers of 24 bits, of at least 1.
const TABLE_TOTAL = 2^24

# Rows, and joins, that have least of a patch are left out of it, those of which it turns out later too: together `left_out` of the coder at a time,
# and those with less than this anyhow. A value that only they explain still codes, at the floor of the tables. docs/compression.md has what that costs.
const LEAST_SHARE = 2.0^-18

# An image has so many rows at most, but for those whose shares are alike; the others have the least.
const MOST_ROWS = 256

# As many as images have, about; less than half of them beyond the first values.
const USUAL_ROWS = 64

"""
The rows of one circuit: of each its image and its offset, and the tiles with 16 rows each, of which there may be more than needed. `factor` and
`total` are of the last table: the power of two that brings a row to its image's scale, and the row's share.
"""
struct CodingRows{T}
    image::Vector{Int32}
    offset::Vector{Int32}           # from 1
    factor::Vector{Float64}
    total::Vector{Float64}
    heads::Vector{HeadWeights{T}}   # of each tile
    tiles::Vector{CodingTile{T}}
    groups::Vector{Matrix{T}}       # (rows, groups)
    values::Vector{Matrix{T}}       # (values of a group, rows)
end

CodingRows{T}() where {T} =
    CodingRows{T}(Int32[], Int32[], Float64[], Float64[], HeadWeights{T}[], CodingTile{T}[], Matrix{T}[], Matrix{T}[])

num_tiles(r::CodingRows) = cld(length(r.image), LANES)
rows_of_tile(r::CodingRows, t) = (t - 1) * LANES + 1:min(t * LANES, length(r.image))

"""
What is known of a patch of one image: the `joins` that have a share of it, ascending; `said[h, i]`, p(j | h) of the i-th of them times what the coded
channels say (of a joint model states are joins, and there is one row; of a field h is a
state and the offsets left of the coded channels); `weight[d, i]`, of the channel's offsets and these joins given all that is coded.
`likelihood[d, i]` is what the channel's rows say of these in the end. There is room for all joins. `shares[d, k]`: of offsets and circuits, when
rows begin.
"""
mutable struct CodingPatch
    joins::Vector{Int}
    said::Matrix{Float64}
    weight::Matrix{Float64}
    likelihood::Matrix{Float64}
    shares::Matrix{Float64}
end

function CodingPatch(c::Coder)
    J, own = num_joins(channels(c, 1)[1]), channels(c, 1)
    D, K = maximum(num_offsets(channel) for channel in own), maximum(length(channel.plans) for of in c.channels for channel in of)
    return CodingPatch(Int[], zeros(c.join === nothing ? 1 : num_states(c), J), zeros(D, J), zeros(D, J), zeros(D, K))
end

"""
    Coding(coder, X; decode)

The images of one block, `X` `(values of an image, images)`: patch after patch, in the order of the positions, a patch's channels interleaved.
To be encoded, or to be filled where `decode`. [`next_table!`](@ref) does the work.
"""
mutable struct Coding
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

num_images(job::Coding) = size(job.X, 2)
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
function next_table!(out::Vector{Float64}, job::Coding, symbols::Vector{Int32})
    if job.position == 0
        begin_patch!(job)
    elseif !hasended(job)
        job.decode ? copyto!(job.symbol, symbols) : own_symbols!(job)
        take_symbols!(job)
    end
    while !hasended(job)
        own, found = channel(job), rows(job)
        m = job.fine ? fill_values!(job, own, found) : fill_groups!(job, own, found)
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
function next_tables!(out::Vector{Float64}, symbols::Matrix{Int32}, sizes::Vector{Int32}, job::Coding)
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

"Work in parts that do not depend on one another, shared among the threads."
function on_tiles(f, n::Int)
    Threads.nthreads() == 1 && return foreach(f, 1:n)
    Threads.@threads for t in 1:n
        f(t)
    end
end

"Divides weights by their sum; equal ones where that is 0."
function normalise_weights!(weights)
    total = 0.0
    for w in weights
        total += w
    end
    for i in eachindex(weights)
        weights[i] = total < TINY ? 1 / length(weights) : weights[i] / total
    end
end

"The joins that have a share of a patch of which only its `state` is known, p(h | coded patches)."
function begin_joins!(patch::CodingPatch, coder::Coder, state::Vector{Float64})
    if coder.join === nothing
        append!(empty!(patch.joins), axes(patch.said, 2))
        fill!(patch.said, 1.0)
        return
    end
    share = zeros(size(coder.by_join, 1))
    for h in eachindex(state)
        state[h] < LEAST_SHARE || add_column!(share, 1, coder.by_join, h, state[h])
    end
    least = least_share(share, sum_in_order(share), coder.left_out.joins, length(share))
    empty!(patch.joins)
    for (j, own) in enumerate(share)
        own >= least && push!(patch.joins, j)
    end
    room = (num_states(coder), size(patch.weight, 2))
    size(patch.said) == room || (patch.said = zeros(room))
    forget!(patch, coder)
end

"Of the patch's joins nothing is known but p(j | h)."
function forget!(patch::CodingPatch, coder::Coder)
    for (i, j) in enumerate(patch.joins)
        copy_joined!(patch.said, i, coder.join, j)
    end
end

function copy_joined!(to, i, from, j)
    @inbounds for h in axes(from, 1)
        to[h, i] = from[h, j]
    end
end

"out[:, i] += factor * table[:, column], of as many rows as the table has."
function add_column!(out::VecOrMat{Float64}, i, table::Matrix{Float64}, column, factor::Float64)
    @inbounds @simd ivdep for h in axes(table, 1)
        out[h, i] += factor * table[h, column]
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
    job.coder.join === nothing ? copyto!(patch.weight, state) : weigh!(patch, own.shift, state, job.coder.left_out.joins)
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
    weigh!(job.patch[n], image.next, state, job.coder.left_out.joins)
end

"`shift`: p(d | h), or p(h, d), where `state` is 1 then; `(offsets, h)`."
function weigh!(patch::CodingPatch, shift::Matrix{Float64}, state::Vector{Float64}, left_out::Float64)
    D, J, states = size(shift, 1), length(patch.joins), findall(>=(LEAST_SHARE), state)
    share = zeros(J)
    for i in 1:J
        weigh_join!(patch.weight, i, shift, patch.said, state, states)
        for d in 1:D
            share[i] += patch.weight[d, i]
        end
    end
    total, kept = sum_in_order(share), 0
    least = least_share(share, total, left_out, J)
    for i in 1:J
        share[i] >= least || continue
        kept += 1
        patch.joins[kept] = patch.joins[i]
        kept == i || copy_joined!(patch.said, kept, patch.said, i)
        for d in 1:D
            patch.weight[d, kept] = total < TINY ? 1 / (D * J) : patch.weight[d, i] / total
        end
    end
    resize!(patch.joins, kept)
    return
end

function weigh_join!(weight, i, shift, said, state, states)
    D, d = size(shift, 1), 0
    GC.@preserve weight shift while d + LANES <= D
        own = splat(0.0)
        @inbounds for h in states
            own = add(own, mul(splat(state[h] * said[h, i]), load_lanes(pointer(shift, D * (h - 1) + d + 1))))
        end
        store_lanes(pointer(weight, size(weight, 1) * (i - 1) + d + 1), own)
        d += LANES
    end
    @inbounds for e in d + 1:D
        own = 0.0
        for h in states
            own += state[h] * said[h, i] * shift[e, h]
        end
        weight[e, i] = own
    end
end

"The sum, added up from the first on."
function sum_in_order(numbers)
    own = 0.0
    for x in numbers
        own += x
    end
    return own
end

"""
The rows of a channel: those circuits, and offsets, that have a share of the patch. Where the channel is anchored, the value of its first variable
is known, and used where it is `possible`.
"""
function begin_rows!(job::Coding, own::CodingChannel{T}, found::Vector{CodingRows{T}}, possible::Vector{Bool}) where {T}
    N, D, anchored = num_images(job), num_offsets(own), isanchored(own)
    first, least = anchored ? place(job) : 0, zeros(N)
    on_tiles(N) do n
        known = anchored && possible[n]
        share_rows!(job.patch[n], own, known ? Int(job.X[first, n]) : -1)
        least[n] = least_share(job.patch[n].shares, 1.0, job.coder.left_out.rows, MOST_ROWS)
    end
    number = zeros(Int, N)
    for (k, of) in enumerate(found)
        empty!(of.image)
        empty!(of.offset)
        for n in 1:N, d in 1:D
            job.patch[n].shares[d, k] >= least[n] && number[n] < 2MOST_ROWS || continue
            number[n] += 1
            push!(of.image, n)
            push!(of.offset, d)
        end
        resize!(of.factor, length(of.image))
        resize!(of.total, length(of.image))
        while length(of.tiles) < num_tiles(of)
            push!(of.tiles, CodingTile(own.plans[k]))
            push!(of.heads, HeadWeights{T}(length(own.joins[k])))
            push!(of.groups, zeros(T, LANES, num_groups(own)))
            push!(of.values, zeros(T, own.group, LANES))
        end
    end
    on_rows(found) do k, t
        of, plan = found[k], own.plans[k]
        fill!(of.heads[t].weight, 0)
        for (l, r) in enumerate(rows_of_tile(of, t))
            weigh_heads!(of.heads[t], l, job.patch[of.image[r]], own.joins[k], of.offset[r])
        end
        reset!(of.tiles[t])
        if anchored
            follow!(of.tiles[t], plan, plan.steps[1], of.heads[t])
            know!(of.tiles[t], plan, own.order[1], residuals(job, own, of, t, first, possible))
        end
    end
end

"The i of those of a patch's joins that are heads of one circuit."
of_circuit(patch::CodingPatch, joins) = searchsortedfirst(patch.joins, first(joins)):searchsortedlast(patch.joins, last(joins))

"The heads' weights in one row, the largest of which is in [1, 2)."
function weigh_heads!(heads::HeadWeights{T}, row, patch::CodingPatch, joins, d) where {T}
    own, largest = of_circuit(patch, joins), 0.0
    for i in own
        largest = max(largest, patch.weight[d, i])
    end
    largest < TINY && return
    factor = double_power(-double_exponent(largest))
    heads.exponent[row] = double_exponent(largest)
    for i in own
        heads.weight[row, patch.joins[i] - first(joins) + 1] = without_tiny(T(without_tiny(patch.weight[d, i] * factor)))
    end
end

"The share of each offset and circuit; `x`: the value of the first variable, or -1."
function share_rows!(patch::CodingPatch, own::CodingChannel, x::Int)
    share, weight, G, (g, rest) = patch.shares, patch.weight, num_groups(own), divrem(max(x, 0), own.group)
    before = [(d, wrapped(g - moved_groups(own, d), G)) for d in 1:num_offsets(own)]
    x < 0 || filter!(pair -> pair[2] in own.window, before)
    fill!(share, 0.0)
    total = 0.0
    for (k, joins) in enumerate(own.joins), i in of_circuit(patch, joins)
        j = patch.joins[i]
        @inbounds for (d, q) in before
            w = x < 0 ? weight[d, i] : without_tiny(weight[d, i] * own.anchor_by_group[q + 1, rest + 1, j])
            share[d, k] += w
            total += w
        end
    end
    total < TINY && return
    for i in eachindex(share)
        @inbounds share[i] /= total
    end
end

"""
The least share of what is kept, a power of two: what has less is at most `left_out` of all, `shares` that sum to `total`, and at most `most` have more.
"""
function least_share(shares, total::Float64, left_out::Float64, most::Int)
    mass, number = zeros(BUCKETS), zeros(Int, BUCKETS)  # by powers of two
    @inbounds for x in shares
        x <= 0 && continue
        e = clamp(1 - double_exponent(x / total), 1, BUCKETS)
        mass[e] += x
        number[e] += 1
    end
    left, lost, e = sum(number), 0.0, BUCKETS
    while e > 1 && (e > LAST_BUCKET || left - number[e] > 0 && (lost + mass[e] <= left_out * total || left > most))
        lost += mass[e]
        left -= number[e]
        e -= 1
    end
    return double_power(1 - e) * total
end

# Shares of 1 to 2^-30, and all below.
const BUCKETS, LAST_BUCKET = 30, 19

"`f(k, t)` of the tiles of all circuits of a channel."
function on_rows(f, found)
    tiles = [(k, t) for (k, of) in enumerate(found) for t in 1:num_tiles(of)]
    on_tiles(i -> f(tiles[i]...), length(tiles))
end

"What the rows of a tile have for their value of one row of `X`: less their offset; unknown where it is not possible, and of no row."
function residuals(job::Coding, own::CodingChannel, of::CodingRows, t, row, possible)
    found = fill(UNKNOWN, LANES)
    for (l, r) in enumerate(rows_of_tile(of, t))
        n = of.image[r]
        possible[n] && (found[l] = mod(job.X[row, n] - own.step * (of.offset[r] - 1), own.categories))
    end
    return found
end

"Makes the value that was coded last known to all rows."
function know_value!(job::Coding, own::CodingChannel{T}, found::Vector{CodingRows{T}}, possible) where {T}
    row, v = place(job), own.order[job.variable]
    on_rows(found) do k, t
        know!(found[k].tiles[t], own.plans[k], v, residuals(job, own, found[k], t, row, possible))
    end
end

"Of each row the power of two that brings it to its image's scale; `exponents(k, t)`: those of a tile's rows."
function scale_rows!(found::Vector{<:CodingRows}, exponents, N)
    top = fill(typemin(Int32) ÷ Int32(2), N)
    for (k, of) in enumerate(found), t in 1:num_tiles(of)
        e = exponents(k, t)
        for (l, r) in enumerate(rows_of_tile(of, t))
            top[of.image[r]] = max(top[of.image[r]], e[l])
        end
    end
    for (k, of) in enumerate(found), t in 1:num_tiles(of)
        e = exponents(k, t)
        for (l, r) in enumerate(rows_of_tile(of, t))
            of.factor[r] = double_power(e[l] - top[of.image[r]])
        end
    end
end

scale_tables!(found, own::CodingChannel, v, N) =
    scale_rows!(found, (k, t) -> view(found[k].tiles[t].above_exponent, :, own.plans[k].layout.single[v]), N)

"""
Leaves out the rows that have least of the last table, where fewer tiles hold the others: these move up.
"""
function drop_rows!(job::Coding, own::CodingChannel{T}, found::Vector{CodingRows{T}}) where {T}
    i, shares = job.variable, [Float64[] for _ in 1:num_images(job)]
    for of in found, r in eachindex(of.image)
        push!(shares[of.image[r]], of.total[r])
    end
    least = [least_share(own, sum_in_order(own), job.coder.left_out.rows, MOST_ROWS) for own in shares]
    on_tiles(length(found)) do k
        of, plan = found[k], own.plans[k]
        kept = [r for r in eachindex(of.image) if of.total[r] >= least[of.image[r]]]
        saved = num_tiles(of) - cld(length(kept), LANES)
        TILE_COST * saved * (length(own.order) - i) > length(kept) * i || return
        scopes = touched(plan, i)
        units = map(own -> reduce(vcat, [units_of(plan.layout.scopes[s]) for s in own]; init=Int32[]), scopes)
        for (to, r) in enumerate(kept)
            to == r && continue
            (a, from), (b, row) = fldmod1(r, LANES), fldmod1(to, LANES)
            copy_row!(of.tiles[b], row, of.tiles[a], from, scopes, units)
            of.heads[b].weight[row, :] = of.heads[a].weight[from, :]
            of.heads[b].exponent[row] = of.heads[a].exponent[from]
        end
        for rows in (of.image, of.offset, of.factor, of.total)
            rows[1:length(kept)] = rows[kept]
            resize!(rows, length(kept))
        end
    end
end

# A variable of a tile takes so many times as long as moving one variable of one row.
const TILE_COST = 8

# Tables.

"The weights of the groups of the next variable's values; how many there are."
function fill_groups!(job::Coding, own::CodingChannel{T}, found::Vector{CodingRows{T}}) where {T}
    v, G = own.order[job.variable], num_groups(own)
    job.variable == 1 && isanchored(own) && return anchor_groups!(job, own)
    on_rows(found) do k, t
        of, plan = found[k], own.plans[k]
        follow!(of.tiles[t], plan, plan.steps[job.variable], of.heads[t])
        G > 1 && group_weights!(of.groups[t], of.tiles[t], plan, v)
    end
    G > 1 || return 1
    fill!(job.table, 0.0)
    scale_tables!(found, own, v, num_images(job))
    for of in found, t in 1:num_tiles(of)
        weights = of.groups[t]
        @inbounds for (l, r) in enumerate(rows_of_tile(of, t))
            n, factor, total = of.image[r], of.factor[r], 0.0
            moved = moved_groups(own, of.offset[r])
            for g in 1:G
                to, weight = g + moved, without_tiny(weights[l, g] * factor)
                job.table[to > G ? to - G : to, n] += weight
                total += weight
            end
            of.total[r] = total
        end
    end
    isanchored(own) && job.variable > 2 && ispow2(job.variable - 1) && drop_rows!(job, own, found)
    return G
end

"The weights of the values in each image's group; how many there are."
function fill_values!(job::Coding, own::CodingChannel{T}, found::Vector{CodingRows{T}}) where {T}
    v, G = own.order[job.variable], num_groups(own)
    job.variable == 1 && isanchored(own) && return anchor_values!(job, own)
    fill!(job.table, 0.0)
    G > 1 || scale_tables!(found, own, v, num_images(job))
    on_rows(found) do k, t
        of, groups = found[k], ones(Int, LANES)
        for (l, r) in enumerate(rows_of_tile(of, t))
            groups[l] = wrapped(job.group[of.image[r]] - moved_groups(own, of.offset[r]), G) + 1
        end
        value_weights!(of.values[t], of.tiles[t], own.plans[k], v, groups)
    end
    for of in found, t in 1:num_tiles(of)
        weights = of.values[t]
        @inbounds for (l, r) in enumerate(rows_of_tile(of, t))
            n, factor = of.image[r], of.factor[r]
            for i in 1:own.group
                job.table[i, n] += without_tiny(weights[i, l] * factor)
            end
        end
    end
    return own.group
end

# Of the first variable of an anchored channel, whose rows are not chosen yet.

function anchor_groups!(job::Coding, own::CodingChannel)
    on_tiles(n -> anchor_groups!(job.table, n, own, job.patch[n]), num_images(job))
    return num_groups(own)
end

function anchor_groups!(table, n, own::CodingChannel, patch::CodingPatch)
    G, D, stride = num_groups(own), num_offsets(own), own.step ÷ own.group
    wide = zeros(2G)
    for (i, j) in enumerate(patch.joins), g in own.window
        add_moved!(wide, g, stride, view(patch.weight, 1:D, i), own.anchor_mass[g + 1, j])
    end
    for g in 1:G
        table[g, n] = wide[g] + wide[g + G]
    end
end

"Adds `factor` times the weights of all offsets to what `g`, from 0, is moved to by them."
function add_moved!(wide, g, stride, weight, factor)
    if stride == 1
        @inbounds @simd ivdep for d in eachindex(weight)
            wide[g + d] += factor * weight[d]
        end
    else
        @inbounds for d in eachindex(weight)
            wide[g + 1 + stride * (d - 1)] += factor * weight[d]
        end
    end
end

function anchor_values!(job::Coding, own::CodingChannel)
    on_tiles(n -> anchor_values!(job.table, n, own, job.patch[n], job.group[n]), num_images(job))
    return own.group
end

function anchor_values!(table, n, own::CodingChannel, patch::CodingPatch, group)
    G = num_groups(own)
    table[:, n] .= 0.0
    before = [(d, wrapped(group - moved_groups(own, d), G)) for d in 1:num_offsets(own)]
    filter!(pair -> pair[2] in own.window, before)
    for (i, j) in enumerate(patch.joins), (d, g) in before
        w = patch.weight[d, i]
        @inbounds for x in 1:own.group
            table[x, n] += w * own.anchor[x, g + 1, j]
        end
    end
end

# What a patch says, when it is known.

"Multiplies what the channel's circuits say of the patch to what the others did."
function end_channel!(job::Coding, own::CodingChannel{T}, found::Vector{CodingRows{T}}) where {T}
    on_rows(found) do k, t
        follow!(found[k].tiles[t], own.plans[k], own.plans[k].last, found[k].heads[t])
    end
    scale_rows!(found, (k, t) -> view(found[k].tiles[t].value_exponent, :, own.plans[k].layout.root), num_images(job))
    foreach(patch -> fill!(patch.likelihood, 0.0), job.patch)
    for (k, of) in enumerate(found), t in 1:num_tiles(of), (l, r) in enumerate(rows_of_tile(of, t))
        say_row!(job.patch[of.image[r]], own.joins[k], of.offset[r], of.tiles[t].value, own.plans[k].circuit.heads, l, of.factor[r])
    end
    on_tiles(num_images(job)) do n
        prior = job.coder.prior
        prior isa CodingField ? say!(job.patch[n], num_offsets(own), job.fields[n], here(job), job.coder.left_out.joins) : say!(job.patch[n], own, job.coder)
    end
end

function say_row!(patch::CodingPatch, joins, d, value, heads, row, factor)
    @inbounds for i in of_circuit(patch, joins)
        patch.likelihood[d, i] = without_tiny(value[row, heads[patch.joins[i] - first(joins) + 1]] * factor)
    end
end

"""
Of joins, and offsets of them, that now have a share of the patch: what the channel says of each state. Where all are impossible, what was known is
forgotten.
"""
function say!(patch::CodingPatch, own::CodingChannel, coder::Coder)
    if coder.join === nothing
        say_states!(patch.said, patch.likelihood)
        return
    end
    D, J, weight, likelihood = num_offsets(own), length(patch.joins), patch.weight, patch.likelihood
    share = zeros(J)
    for i in 1:J, d in 1:D
        @inbounds share[i] += without_tiny(weight[d, i] * likelihood[d, i])
    end
    total, sums, kept = sum_in_order(share), zeros(size(patch.said, 1)), 0
    total < TINY && return forget!(patch, coder)
    least = least_share(share, total, coder.left_out.joins, J)
    for i in 1:J
        share[i] >= least || continue
        fill!(sums, 0.0)
        for d in 1:D
            p = likelihood[d, i]
            weight[d, i] * p < LEAST_SHARE * total || add_column!(sums, 1, own.by_state, d, p)
        end
        kept += 1
        patch.joins[kept] = patch.joins[i]
        @inbounds for h in eachindex(sums)
            patch.said[h, kept] = without_tiny(patch.said[h, i] * without_tiny(sums[h]))
        end
    end
    resize!(patch.joins, kept)
    return
end

"""
The same of a field: `said` goes on to the offsets of this channel that are left at position `i`, which are kept in `image`. Where all is impossible,
the likeliest offset is left.
"""
function say!(patch::CodingPatch, D::Int, image::CodingFieldImage, i::Int, left_out::Float64)
    J, weight, likelihood = length(patch.joins), patch.weight, patch.likelihood
    share, places = zeros(J), zeros(D)
    add() = for i in 1:J, d in 1:D
        own = without_tiny(weight[d, i] * likelihood[d, i])
        share[i] += own
        places[d] += own
    end
    add()
    if sum_in_order(share) < TINY
        likelihood[1:D, 1:J] .= 1.0
        add()
        places .= places .== maximum(places)
    end
    total = sum_in_order(share)
    left = findall(>=(LEAST_PLACE * sum_in_order(places)), places)
    length(left) > MOST_PLACES && (left = sort(left[sortperm(places[left]; rev=true, alg=MergeSort)[1:MOST_PLACES]]))
    push!(image.places[i], left)
    kept = findall(>=(least_share(share, total, left_out, J)), share)
    H = size(patch.said, 1)
    said = zeros(H * length(left), length(kept))
    @inbounds for (to, from) in enumerate(kept), (o, d) in enumerate(left), h in 1:H
        said[h + H * (o - 1), to] = without_tiny(patch.said[h, from] * likelihood[d, from])
    end
    patch.joins, patch.said = patch.joins[kept], said
    return
end

function say_states!(said, likelihood)
    possible = false
    for j in axes(said, 2)
        said[1, j] = without_tiny(said[1, j] * likelihood[1, j])
        possible |= said[1, j] > 0
    end
    possible || fill!(said, 1.0)
    return
end

"Tells p(h) what the patch says of its state."
function end_patch!(job::Coding)
    end_patch!(job, job.coder.prior)
end

end_patch!(::Coding, ::Nothing) = nothing

function end_patch!(job::Coding, plan::CodingPlan{Float64})
    on_tiles(length(job.prior)) do t
        for n in images_of_tile(job, t)
            know_softly!(job.prior[t], plan, here(job), n - (t - 1) * LANES, evidence(job.patch[n]))
        end
    end
end

function end_patch!(job::Coding, f::CodingField)
    on_tiles(num_images(job)) do n
        values = reshape(evidence(job.patch[n]), num_states(f.field), :)
        know_position!(f, job.fields[n], here(job), any(>(0), values) ? values : fill!(values, 1.0))
    end
end

"p(what the patch is | h), to scale."
function evidence(patch::CodingPatch)
    size(patch.said, 1) == 1 && return patch.said[1, :]
    found = zeros(size(patch.said, 1))
    for i in eachindex(patch.joins)
        add_column!(found, 1, patch.said, i, 1.0)
    end
    return found
end
