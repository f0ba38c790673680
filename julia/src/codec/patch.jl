# What is known of a patch of one image, while its values become known: which joins have a share of it, under which offsets.

# Rows, and joins, that have least of a patch are left out of it, those of which it turns out later too: together `left_out` of the coder at a time,
# and those with less than this anyhow. A value that only they explain still codes, at the floor of the tables. docs/compression.md has what that costs.
const LEAST_SHARE = 2.0^-18

"""
What is known of a patch of one image: the `joins` that have a share of it, ascending; `said[h, i]`, p(j | h) of the i-th of them times what the coded
channels say (of a joint model states are joins, and there is one row; of a field h is a state and the offsets left of the coded channels). Where
`nothing_said`, it is p(j | h), column j of the coder's own table.
`weight[d, i]`, of the channel's offsets and these joins given all that is coded. `likelihood[d, i]` is what the channel's rows say of these in the
end. There is room for all joins. `shares[d, k]`: of offsets and circuits, when rows begin.
"""
mutable struct CodingPatch
    joins::Vector{Int}
    nothing_said::Bool
    said::Matrix{Float64}
    weight::Matrix{Float64}
    likelihood::Matrix{Float64}
    shares::Matrix{Float64}
end

function CodingPatch(c::Coder)
    J, own = num_joins(channels(c, 1)[1]), channels(c, 1)
    D, K = maximum(num_offsets(channel) for channel in own), maximum(length(channel.plans) for of in c.channels for channel in of)
    return CodingPatch(Int[], c.join !== nothing, zeros(c.join === nothing ? 1 : 0, J), zeros(D, J), zeros(D, J), zeros(D, K))
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
    patch.nothing_said = true
end

"`said`, and the columns of the patch's joins in it."
said_of(patch::CodingPatch, coder::Coder) = patch.nothing_said ? (coder.join, patch.joins) : (patch.said, eachindex(patch.joins))

# `@simd` may reorder and fuse what iterations add up together. In this loop, as in all of the codec's, each has a number of its own.
"out[:, i] += factor * table[:, column], of as many rows as the table has."
function add_column!(out::VecOrMat{Float64}, i, table::Matrix{Float64}, column, factor::Float64)
    @inbounds @simd ivdep for h in axes(table, 1)
        out[h, i] += factor * table[h, column]
    end
end

# Of a channel.

"`shift`: p(d | h), or p(h, d), where `state` is 1 then; `(offsets, h)`."
function weigh!(patch::CodingPatch, shift::Matrix{Float64}, state::Vector{Float64}, coder::Coder)
    D, J, states = size(shift, 1), length(patch.joins), findall(>=(LEAST_SHARE), state)
    said, column = said_of(patch, coder)
    share = zeros(J)
    weigh_joins!(patch.weight, shift, said, column, state, states)
    @inbounds for i in 1:J, d in 1:D
        share[i] += patch.weight[d, i]
    end
    total, kept = sum_in_order(share), 0
    least = least_share(share, total, coder.left_out.joins, J)
    for i in 1:J
        share[i] >= least || continue
        kept += 1
        patch.joins[kept] = patch.joins[i]
        patch.nothing_said || kept == i || copy_said!(patch.said, kept, patch.said, i)
        for d in 1:D
            patch.weight[d, kept] = total < TINY ? 1 / (D * J) : patch.weight[d, i] / total
        end
    end
    resize!(patch.joins, kept)
    return
end

copy_said!(to, i, from, j) = copyto!(to, size(to, 1) * (i - 1) + 1, from, size(from, 1) * (j - 1) + 1, size(from, 1))

function weigh_joins!(weight, shift, said, column, state, states)
    for i in 1:ABREAST:length(column)
        joins = min.((i, i + 1, i + 2, i + 3), length(column))
        weigh_joins!(weight, joins, shift, said, map(j -> column[j], joins), state, states)
    end
end

"Of four joins, and of their columns of `said`; some may be the same."
function weigh_joins!(weight, joins::NTuple{ABREAST,Int}, shift, said, columns::NTuple{ABREAST,Int}, state, states)
    D, d, (i, j, k, l) = size(shift, 1), 0, columns
    GC.@preserve weight shift while d + LANES <= D
        a = b = c = e = splat(0.0)
        @inbounds for h in states
            p, own = state[h], load_lanes(pointer(shift, D * (h - 1) + d + 1))
            a = add(a, mul(splat(p * said[h, i]), own))
            b = add(b, mul(splat(p * said[h, j]), own))
            c = add(c, mul(splat(p * said[h, k]), own))
            e = add(e, mul(splat(p * said[h, l]), own))
        end
        for (to, own) in zip(joins, (a, b, c, e))
            store_lanes(pointer(weight, size(weight, 1) * (to - 1) + d + 1), own)
        end
        d += LANES
    end
    @inbounds for (to, i) in zip(joins, columns), f in d + 1:D
        own = 0.0
        for h in states
            own += state[h] * said[h, i] * shift[f, h]
        end
        weight[f, to] = own
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

# What a patch says, when it is known.

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
    total, sums, kept = sum_in_order(share), zeros(num_states(coder)), 0
    if total < TINY
        patch.nothing_said = true
        return
    end
    least, (before, column) = least_share(share, total, coder.left_out.joins, J), said_of(patch, coder)
    said = zeros(length(sums), count(>=(least), share))
    for i in 1:J
        share[i] >= least || continue
        fill!(sums, 0.0)
        for d in 1:D
            p = likelihood[d, i]
            weight[d, i] * p < LEAST_SHARE * total || add_column!(sums, 1, own.by_state, d, p)
        end
        kept += 1
        say_states!(said, kept, before, column[i], sums)
        patch.joins[kept] = patch.joins[i]
    end
    resize!(patch.joins, kept)
    patch.said, patch.nothing_said = said, false
    return
end

"What the sums say of a join's states, beside what was said `before`."
function say_states!(said, to, before::Matrix{Float64}, from, sums)
    @inbounds for h in eachindex(sums)
        said[h, to] = without_tiny(before[h, from] * without_tiny(sums[h]))
    end
end

"""
The same of a field: `said` goes on to the offsets of this channel that are left at position `i`, which are kept in `image`. Where all is impossible,
the likeliest offset is left.
"""
function say!(patch::CodingPatch, D::Int, image::CodingFieldImage, i::Int, coder::Coder)
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
    kept = findall(>=(least_share(share, total, coder.left_out.joins, J)), share)
    before, column = said_of(patch, coder)
    H = size(before, 1)
    said = zeros(H * length(left), length(kept))
    for (to, from) in enumerate(kept)
        say_places!(said, to, before, column[from], likelihood, from, left)
    end
    patch.joins, patch.said, patch.nothing_said = patch.joins[kept], said, false
    return
end

function say_places!(said, to, before::Matrix{Float64}, column, likelihood, from, left)
    H = size(before, 1)
    @inbounds for (o, d) in enumerate(left), h in 1:H
        said[h + H * (o - 1), to] = without_tiny(before[h, column] * likelihood[d, from])
    end
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

"p(what the patch is | h), to scale."
function evidence(patch::CodingPatch, coder::Coder)
    coder.join === nothing && return patch.said[1, :]
    said, column = said_of(patch, coder)
    found = zeros(size(said, 1))
    for i in column
        add_column!(found, 1, said, i, 1.0)
    end
    return found
end
