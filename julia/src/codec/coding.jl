# Images on their way through a codec, block by block: of every value its table, and what it means for those after it.

# A table has integers of 24 bits, of at least 1.
const TABLE_TOTAL = 2^24

# Offsets, shapes and states that have less than this of a patch are left out of it: a value that only they explain still codes, at the
# floor of the tables.
const LEAST_ROW, LEAST_STATE = 2.0^-40, 2.0^-50

"The rows of one circuit: of each its image and its offset, and the tiles with 16 rows each, of which there may be more than needed."
struct CodingRows
    image::Vector{Int32}
    offset::Vector{Int32}           # from 1
    heads::Vector{Matrix{Float64}}  # of each tile: (rows, heads)
    tiles::Vector{CodingTile}
    weights::Vector{Matrix{Float64}} # (rows, groups)
end

CodingRows() = CodingRows(Int32[], Int32[], Matrix{Float64}[], CodingTile[], Matrix{Float64}[])

num_tiles(r::CodingRows) = cld(length(r.image), LANES)
rows_of_tile(r::CodingRows, t) = (t - 1) * LANES + 1:min(t * LANES, length(r.image))

"""
    Coding(coder, X; decode)

The images of one block, `X` `(values of an image, images)`: patch after patch, in the order of the positions, a patch's channels interleaved.
To be encoded, or to be filled where `decode`. [`next_table!`](@ref) does the work.
"""
mutable struct Coding
    coder::Coder
    X::Matrix{Int32}
    decode::Bool
    prior::Vector{CodingTile}             # of 16 images each
    state::Matrix{Float64}          # p(h_i | coded patches), (states, images)
    said::Array{Float64,3}          # p(j | h) times what the coded channels of the patch say, (states, joins, images); of a joint model states are joins
    weight::Array{Float64,3}        # of offsets and joins, given what is coded: (offsets, joins, images)
    rows::Vector{Vector{CodingRows}} # for each channel of each kind of position, of each circuit
    position::Int                   # how many have begun
    channel::Int
    variable::Int
    fine::Bool                      # the next table is that of the values in a group
    group::Vector{Int}              # of each image: the group that its value is in
    symbol::Vector{Int}             # of each image: what the last table coded
    table::Matrix{Float64}          # weights of what the last table codes, (entries, images)
end

function Coding(c::Coder, X::Matrix{Int32}, decode::Bool)
    N, S, P = size(X, 2), num_states(c), length(c.positions)
    size(X, 1) == P * patch_size(c) || throw(DimensionMismatch("X: found $(size(X, 1)) values of an image, wanted $(P * patch_size(c))"))
    prior = c.prior === nothing ? CodingTile[] : [CodingTile(c.prior) for _ in 1:cld(N, LANES)]
    J = num_joins(channels(c, 1)[1])
    rows = [[CodingRows() for _ in channel.plans] for own in c.channels for channel in own]
    return Coding(c, X, decode, prior, ones(S, N), zeros(c.join === nothing ? 1 : S, J, N), zeros(0, 0, 0), rows, 0, 0, 0, false,
                  zeros(Int, N), zeros(Int, N), zeros(widest_table(c), N))
end

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
        m = job.fine ? fill_values!(job) : fill_groups!(job)
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
    isanchored(own) && job.variable == 1 ? begin_rows!(job, possible) : know_value!(job, possible)
    job.variable += 1
    job.variable <= length(own.order) && return
    end_channel!(job)
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
    coder, plan = job.coder, job.coder.prior
    if plan !== nothing
        one = ones(LANES, 1)
        on_tiles(length(job.prior)) do t
            follow!(job.prior[t], plan, plan.steps[job.position], one)
            for n in images_of_tile(job, t)
                all_weights!(view(job.state, :, n), job.prior[t], plan, here(job), n - (t - 1) * LANES)
                normalise_weights!(view(job.state, :, n))
            end
        end
    end
    if coder.join === nothing
        fill!(job.said, 1.0)
    else
        on_tiles(num_images(job)) do n
            copyto!(view(job.said, :, :, n), coder.join)
        end
    end
    begin_channel!(job, 1)
end

images_of_tile(job, t) = (t - 1) * LANES + 1:min(t * LANES, num_images(job))

"Work in parts that do not depend on one another, shared among the threads."
function on_tiles(f, n::Int)
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

"Weights of the offsets and joins of a channel, given all that is coded."
function begin_channel!(job::Coding, c::Int)
    job.channel, job.variable, job.fine = c, 1, false
    own = channel(job)
    size(job.weight) == (num_offsets(own), num_joins(own), num_images(job)) ||
        (job.weight = zeros(num_offsets(own), num_joins(own), num_images(job)))
    on_tiles(num_images(job)) do n
        weigh!(view(job.weight, :, :, n), own, view(job.said, :, :, n), view(job.state, :, n), job.coder.join === nothing)
    end
    isanchored(own) || begin_rows!(job, fill(false, num_images(job)))
end

function weigh!(weight, own::CodingChannel, said, state, joined::Bool)
    fill!(weight, 0.0)
    @inbounds for j in axes(weight, 2)
        if joined
            weight[1, j] = state[j]
        else
            for h in eachindex(state)
                a = without_tiny(state[h] * said[h, j])
                a < LEAST_STATE && continue
                for d in axes(weight, 1)
                    weight[d, j] += a * own.shift[d, h]
                end
            end
        end
    end
    normalise_weights!(weight)
end

"""
The rows of a channel: those circuits, and offsets, that have a share of the patch. Where the channel is anchored, the value of its first variable
is known, and used where it is `possible`.
"""
function begin_rows!(job::Coding, possible::Vector{Bool})
    own, N = channel(job), num_images(job)
    shares = zeros(num_offsets(own), length(own.plans), N)
    anchored = isanchored(own)
    first = anchored ? place(job) : 0
    on_tiles(N) do n
        known = anchored && possible[n]
        share_rows!(view(shares, :, :, n), own, view(job.weight, :, :, n), known ? Int(job.X[first, n]) : -1)
    end
    found = rows(job)
    for (k, of) in enumerate(found)
        empty!(of.image)
        empty!(of.offset)
        for n in 1:N, d in axes(shares, 1)
            shares[d, k, n] > LEAST_ROW || continue
            push!(of.image, n)
            push!(of.offset, d)
        end
        while length(of.tiles) < num_tiles(of)
            push!(of.tiles, CodingTile(own.plans[k]))
            push!(of.heads, zeros(LANES, length(own.joins[k])))
            push!(of.weights, zeros(LANES, num_groups(own)))
        end
    end
    on_rows(job) do k, t
        of, plan = found[k], own.plans[k]
        fill!(of.heads[t], 0.0)
        for (l, r) in enumerate(rows_of_tile(of, t)), (i, j) in enumerate(own.joins[k])
            of.heads[t][l, i] = without_tiny(job.weight[of.offset[r], j, of.image[r]])
        end
        reset!(of.tiles[t])
        if anchored
            follow!(of.tiles[t], plan, plan.steps[1], of.heads[t])
            know!(of.tiles[t], plan, own.order[1], residuals(job, of, t, first, possible))
        end
    end
end

"The share of each offset and circuit, (offsets, circuits); `x`: the value of the first variable, or -1."
function share_rows!(share, own::CodingChannel, weight, x::Int)
    total = 0.0
    @inbounds for (k, joins) in enumerate(own.joins), d in axes(share, 1)
        y = x < 0 ? 0 : mod(x - own.step * (d - 1), own.categories)
        for j in joins
            share[d, k] += x < 0 ? weight[d, j] : weight[d, j] * own.anchor[y + 1, j]
        end
        total += share[d, k]
    end
    share ./= total
end

"`f(k, t)` of the tiles of all circuits of the channel."
function on_rows(f, job::Coding)
    found = rows(job)
    tiles = [(k, t) for (k, of) in enumerate(found) for t in 1:num_tiles(of)]
    on_tiles(i -> f(tiles[i]...), length(tiles))
end

"What the rows of a tile have for their value of one row of `X`: less their offset; unknown where it is not possible, and of no row."
function residuals(job::Coding, of::CodingRows, t, row, possible)
    found, own = fill(UNKNOWN, LANES), channel(job)
    for (l, r) in enumerate(rows_of_tile(of, t))
        n = of.image[r]
        possible[n] && (found[l] = mod(job.X[row, n] - own.step * (of.offset[r] - 1), own.categories))
    end
    return found
end

"Makes the value that was coded last known to all rows."
function know_value!(job::Coding, possible)
    own, row = channel(job), place(job)
    v = own.order[job.variable]
    on_rows(job) do k, t
        of = rows(job)[k]
        know!(of.tiles[t], own.plans[k], v, residuals(job, of, t, row, possible))
    end
end

"Of each image the largest `exponent(k, t, l)` of its rows: row l of tile t of circuit k."
function top_exponents(exponent, job::Coding)
    top = fill(typemin(Int32) ÷ Int32(2), num_images(job))
    for (k, of) in enumerate(rows(job)), t in 1:num_tiles(of), (l, r) in enumerate(rows_of_tile(of, t))
        top[of.image[r]] = max(top[of.image[r]], exponent(k, t, l))
    end
    return top
end

# Tables.

"The weights of the groups of the next variable's values; how many there are."
function fill_groups!(job::Coding)
    own = channel(job)
    v, G = own.order[job.variable], num_groups(own)
    job.variable == 1 && isanchored(own) && return anchor_groups!(job)
    on_rows(job) do k, t
        of, plan = rows(job)[k], own.plans[k]
        follow!(of.tiles[t], plan, plan.steps[job.variable], of.heads[t])
        G > 1 && group_weights!(of.weights[t], of.tiles[t], plan, v)
    end
    G > 1 || return 1
    fill!(job.table, 0.0)
    exponent(k, t, l) = rows(job)[k].tiles[t].above_exponent[l, own.plans[k].layout.single[v]]
    top = top_exponents(exponent, job)
    for (k, of) in enumerate(rows(job)), t in 1:num_tiles(of), (l, r) in enumerate(rows_of_tile(of, t))
        n = of.image[r]
        factor = double_power(exponent(k, t, l) - top[n])
        moved = own.step * (of.offset[r] - 1) ÷ own.group
        @inbounds for g in 1:G
            to = g + moved
            job.table[to > G ? to - G : to, n] += without_tiny(of.weights[t][l, g] * factor)
        end
    end
    return G
end

"The weights of the values in each image's group; how many there are."
function fill_values!(job::Coding)
    own = channel(job)
    v, G = own.order[job.variable], num_groups(own)
    job.variable == 1 && isanchored(own) && return anchor_values!(job)
    fill!(job.table, 0.0)
    exponent(k, t, l) = rows(job)[k].tiles[t].above_exponent[l, own.plans[k].layout.single[v]]
    top, weights = top_exponents(exponent, job), zeros(own.group)
    for (k, of) in enumerate(rows(job)), t in 1:num_tiles(of), (l, r) in enumerate(rows_of_tile(of, t))
        n = of.image[r]
        factor = double_power(exponent(k, t, l) - top[n])
        group = mod(job.group[n] - own.step * (of.offset[r] - 1) ÷ own.group, G)
        value_weights!(weights, of.tiles[t], own.plans[k], v, l, group + 1)
        @inbounds for i in 1:own.group
            job.table[i, n] += without_tiny(weights[i] * factor)
        end
    end
    return own.group
end

# Of the first variable of an anchored channel, whose rows are not chosen yet.

function anchor_groups!(job::Coding)
    own = channel(job)
    G = num_groups(own)
    on_tiles(num_images(job)) do n
        fill!(view(job.table, :, n), 0.0)
        @inbounds for j in 1:num_joins(own), d in 1:num_offsets(own)
            w = job.weight[d, j, n]
            w < LEAST_STATE && continue
            moved = own.step * (d - 1) ÷ own.group
            for g in 1:G
                to = g + moved
                job.table[to > G ? to - G : to, n] += w * own.anchor_mass[g, j]
            end
        end
    end
    return G
end

function anchor_values!(job::Coding)
    own = channel(job)
    on_tiles(num_images(job)) do n
        fill!(view(job.table, :, n), 0.0)
        @inbounds for j in 1:num_joins(own), d in 1:num_offsets(own)
            w = job.weight[d, j, n]
            w < LEAST_STATE && continue
            before = mod(job.group[n] * own.group - own.step * (d - 1), own.categories)
            for i in 1:own.group
                job.table[i, n] += w * own.anchor[before + i, j]
            end
        end
    end
    return own.group
end

# What a patch says, when it is known.

"Multiplies what the channel's circuits say of the patch to what the others did."
function end_channel!(job::Coding)
    own = channel(job)
    on_rows(job) do k, t
        of = rows(job)[k]
        follow!(of.tiles[t], own.plans[k], own.plans[k].last, of.heads[t])
    end
    exponent(k, t, l) = rows(job)[k].tiles[t].value_exponent[l, own.plans[k].layout.root]
    top = top_exponents(exponent, job)
    fill!(job.weight, 0.0)  # from here on: what the rows say, of the joins
    for (k, of) in enumerate(rows(job)), t in 1:num_tiles(of), (l, r) in enumerate(rows_of_tile(of, t))
        n = of.image[r]
        factor = double_power(exponent(k, t, l) - top[n])
        for (i, j) in enumerate(own.joins[k])
            job.weight[of.offset[r], j, n] = without_tiny(of.tiles[t].value[l, own.plans[k].circuit.heads[i]] * factor)
        end
    end
    on_tiles(num_images(job)) do n
        say!(view(job.said, :, :, n), own, view(job.weight, :, :, n), zeros(num_states(job.coder)))
    end
end

function say!(said, own::CodingChannel, likelihood, sums)
    @inbounds for j in axes(said, 2)
        if num_offsets(own) == 1
            for h in axes(said, 1)
                said[h, j] = without_tiny(said[h, j] * likelihood[1, j])
            end
            continue
        end
        fill!(sums, 0.0)
        for d in axes(likelihood, 1)
            p = likelihood[d, j]
            p == 0 && continue
            for h in eachindex(sums)
                sums[h] += own.by_state[h, d] * p
            end
        end
        for h in eachindex(sums)
            said[h, j] = without_tiny(said[h, j] * without_tiny(sums[h]))
        end
    end
end

"Tells p(h) what the patch says of its state."
function end_patch!(job::Coding)
    plan = job.coder.prior
    plan === nothing && return
    on_tiles(length(job.prior)) do t
        evidence = zeros(num_states(job.coder))
        for n in images_of_tile(job, t)
            if job.coder.join === nothing
                copyto!(evidence, view(job.said, 1, :, n))
            else
                fill!(evidence, 0.0)
                for j in axes(job.said, 2), h in eachindex(evidence)
                    @inbounds evidence[h] += job.said[h, j, n]
                end
            end
            know_softly!(job.prior[t], plan, here(job), n - (t - 1) * LANES, evidence)
        end
    end
end
