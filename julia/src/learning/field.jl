# p(h) over a grid of patches where the hidden value of a position is a state and the offset of each channel, h = (s, d), so that neighbours
# know of each other's brightness and colour to the step:
#
#     p(h) = 1/2 sum over two combs of  p(s_1) prod_c p_c(d_1c | s_1)  prod over edges i -> j of  p(s_j | s_i) prod_c p_c(d_jc | d_ic, g(s_i), g(s_j))
#
# States come in groups g, and offsets go on from offsets as the two groups say. The values of h are S D_1 D_2 D_3, 2 million with 64 states
# and 32 offsets, but a patch leaves few of a channel's offsets possible, and a message goes through an edge channel by channel.

"""
    Field(rows, columns, group, first, first_offsets, next, next_offsets)

`group`: of each state, from 1, in ascending order. `first`: p(s) of the position that both combs begin at, the first; `first_offsets[c]`:
p_c(d | s), (states, offsets). `next[a]`: p(s' | s), (states, states'), of direction a: 1 to the right, 2 down; `next_offsets[a][c]`:
p_c(d' | d, g, g'), (offsets, offsets', groups, groups').
"""
struct Field{T<:AbstractFloat}
    rows::Int
    columns::Int
    group::Vector{Int}
    members::Vector{UnitRange{Int}}
    first::Vector{T}
    first_offsets::Vector{Matrix{T}}
    next::Vector{Matrix{T}}
    next_offsets::Vector{Vector{Array{T,4}}}
end

function Field(rows::Integer, columns::Integer, group::AbstractVector{<:Integer}, first, first_offsets, next, next_offsets)
    S, Q = length(group), maximum(group)
    issorted(group) && unique(group) == 1:Q || throw(ArgumentError("group: found $group, wanted 1, 2, ... in ascending order"))
    length(first) == S || throw(ArgumentError("first: found $(length(first)) states, wanted $S"))
    D = [size(offsets, 2) for offsets in first_offsets]
    all(offsets -> size(offsets, 1) == S, first_offsets) || throw(ArgumentError("first_offsets: wanted $S states"))
    length(next) == length(next_offsets) == 2 || throw(ArgumentError("next: wanted two directions"))
    all(==((S, S)) ∘ size, next) || throw(ArgumentError("next: found $(size.(next)), wanted ($S, $S)"))
    all(size.(offsets) == [(d, d, Q, Q) for d in D] for offsets in next_offsets) ||
        throw(ArgumentError("next_offsets: found $([size.(o) for o in next_offsets]), wanted (D, D, $Q, $Q) with D = $D"))
    members = [searchsortedfirst(group, q):searchsortedlast(group, q) for q in 1:Q]
    return Field(Int(rows), Int(columns), collect(Int, group), members, first, first_offsets, next, next_offsets)
end

num_states(f::Field) = length(f.group)
num_positions(f::Field) = f.rows * f.columns
num_offsets(f::Field) = [size(offsets, 2) for offsets in f.first_offsets]

"""
    combs(field) -> two pairs (parent, direction)

Of each position, row after row: where its edge comes from, 0 for the first, and the edge's direction. The first comb's teeth run along the rows,
the second's along the columns. A position comes after its parent.
"""
combs(f::Field) = [comb(f, true), comb(f, false)]

function comb(f::Field, along_rows::Bool)
    parent, direction = zeros(Int, num_positions(f)), zeros(Int, num_positions(f))
    for r in 1:f.rows, c in 1:f.columns
        r == c == 1 && continue
        i, right = (r - 1) * f.columns + c, along_rows ? c > 1 : r == 1
        parent[i], direction[i] = right ? (i - 1, 1) : (i - f.columns, 2)
    end
    return parent, direction
end

"""
What a position's patch says of its (s, d): `values[s, box]` exp(`scale`) is p(x_i | s, d) of the boxes, all combinations of the offsets
`places[c]` (from 1) of each channel, the first channel's fastest; it is impossible under other offsets. No values: nothing is known.
"""
struct Spot
    places::Vector{Vector{Int}}
    values::Matrix{Float64}
    scale::Float64
end

isfree(spot::Spot) = isempty(spot.values)
num_boxes(spot::Spot) = prod(length, spot.places)

free_spot(f::Field) = Spot([collect(1:d) for d in num_offsets(f)], zeros(0, 0), 0.0)

"All products of columns of `a` and `b`, (rows, columns), those of `a` fastest."
function times_channel(a::Matrix{Float64}, b::Matrix{Float64})
    out = Matrix{Float64}(undef, size(a, 1), size(a, 2) * size(b, 2))
    @inbounds for k in axes(b, 2), i in axes(a, 2)
        to = i + size(a, 2) * (k - 1)
        @simd ivdep for j in axes(a, 1)
            out[j, to] = a[j, i] * b[j, k]
        end
    end
    return out
end

"The sums of values (rows, boxes) over all channels but c, (rows, places)."
function sum_others(values::Matrix{Float64}, sizes, c)
    left, right = 1, 1
    for (other, n) in enumerate(sizes)
        other < c && (left *= n)
        other > c && (right *= n)
    end
    out = zeros(size(values, 1), sizes[c])
    @inbounds for r in 1:right, i in 1:sizes[c], l in 1:left
        box = l + left * (i - 1 + sizes[c] * (r - 1))
        @simd ivdep for j in axes(values, 1)
            out[j, i] += values[j, box]
        end
    end
    return out
end

"""
Room for messages, for one thread: buffers that grow, tables of offsets at the places of an edge's ends, and the field's p(s' | s) between
groups, `next[a][q, q2]`, (states, states').
"""
mutable struct MessageRoom
    part::Vector{Float64}
    one::Vector{Float64}
    other::Vector{Float64}
    from::Vector{Float64}
    sums::Vector{Float64}
    tables::Vector{Matrix{Float64}}
    next::Vector{Matrix{Matrix{Float64}}}
    back::Vector{Matrix{Matrix{Float64}}}
end

function MessageRoom(f::Field)
    Q = length(f.members)
    next = [[Float64.(f.next[a][f.members[q], f.members[q2]]) for q in 1:Q, q2 in 1:Q] for a in 1:2]
    return MessageRoom(Float64[], Float64[], Float64[], Float64[], Float64[], [zeros(d, d) for d in num_offsets(f)], next,
                       [permutedims.(blocks) for blocks in next])
end

roomy(v::Vector{Float64}, size::Int) = length(v) < size ? resize!(v, size) : v

"Takes the states `own` of values (states, boxes) into `room.part`, (own states, boxes)."
function take_part!(room::MessageRoom, values::Matrix{Float64}, own::UnitRange{Int})
    m, n = length(own), size(values, 2)
    part = roomy(room.part, m * n)
    @inbounds for box in 1:n, i in 1:m
        part[i + m * (box - 1)] = values[own[1] - 1 + i, box]
    end
end

"""
Sums `room.part`, (m, boxes of `from`), over the offsets of an edge between groups, channel by channel by `room.tables`, (offsets to, offsets
from), but for the channel `but`, whose places stay those of `from`; returns the vector that holds it, `room.part` left as it is.
"""
function through_offsets!(room::MessageRoom, m::Int, from, to, but::Int=0)
    data, free, spare = room.part, room.one, room.other
    left = m
    for c in eachindex(from)
        n = length(from[c])
        if c != but
            right, o = 1, length(to[c])
            for after in c + 1:length(from)
                right *= length(from[after])
            end
            roomy(free, left * o * right)
            through_channel!(free, room.tables[c], data, left, n, o, right)
            data, free, spare = free, spare, free
            n = o
        end
        left *= n
    end
    return data
end

function through_channel!(out::Vector{Float64}, table::Matrix{Float64}, in::Vector{Float64}, left, n, m, right)
    @inbounds for r in 0:right - 1, o in 1:m
        to, p, from = left * (o - 1 + m * r), table[o, 1], left * n * r
        @simd ivdep for l in 1:left
            out[to + l] = p * in[from + l]
        end
        for i in 2:n
            p, from = table[o, i], left * (i - 1 + n * r)
            @simd ivdep for l in 1:left
                out[to + l] = muladd(p, in[from + l], out[to + l])
            end
        end
    end
end

"The tables of an edge of direction `a` from group q to group q2 at the places of both ends, (of `to`, of `from`); `back`: against the edge, as messages to the parent go."
function edge_tables!(room::MessageRoom, f::Field, a, q, q2, from, to; back::Bool)
    for c in eachindex(from)
        fill_table!(room.tables[c], f.next_offsets[a][c], q, q2, from[c], to[c], back)
    end
end

function fill_table!(table, whole, q, q2, from, to, back)
    @inbounds for (i, d) in enumerate(from), (o, d2) in enumerate(to)
        table[o, i] = back ? whole[d2, d, q, q2] : whole[d, d2, q, q2]
    end
end

"""
The message of a child with `below`, (states, its boxes), to its parent: sum over s', d' of p(s' | s) prod_c p_c(d'_c | d_c) below[s', d'], into
`out`, (states, the parent's boxes).
"""
function message_up!(out, room::MessageRoom, f::Field, a::Int, below, child, parent)
    fill!(out, 0.0)
    for (q2, own) in enumerate(f.members)
        take_part!(room, below, own)
        for (q, above) in enumerate(f.members)
            edge_tables!(room, f, a, q, q2, child, parent; back=true)
            add_product!(out, above, room.next[a][q, q2], through_offsets!(room, length(own), child, parent))
        end
    end
    return out
end

"As `message_up!`, the other way: sum over s, d of above[s, d] p(s' | s) prod_c p_c(d'_c | d_c), into `out`, (states, the child's boxes)."
function message_down!(out, room::MessageRoom, f::Field, a::Int, above, parent, child)
    fill!(out, 0.0)
    for (q, own) in enumerate(f.members)
        take_part!(room, above, own)
        for (q2, below) in enumerate(f.members)
            edge_tables!(room, f, a, q, q2, parent, child; back=false)
            add_product!(out, below, room.back[a][q, q2], through_offsets!(room, length(own), parent, child))
        end
    end
    return out
end

"out[rows, :] += weights * in, the states of a group."
function add_product!(out::Matrix{Float64}, rows::UnitRange{Int}, weights::Matrix{Float64}, in::Vector{Float64})
    m, start, count = size(weights, 2), first(rows) - 1, length(rows)
    @inbounds for n in axes(out, 2), i in 1:m
        p = in[i + m * (n - 1)]
        @simd ivdep for o in 1:count
            out[start + o, n] = muladd(weights[o, i], p, out[start + o, n])
        end
    end
end

"""
Messages of one comb on one image: `below[i]`, (states, boxes), is what position i and all below it say of its (s, d), nothing where that is 1;
`up[i]` is its message to its parent. `total` is log p(x), the spots' scales included.
"""
struct Upward
    below::Vector{Union{Nothing,Matrix{Float64}}}
    up::Vector{Union{Nothing,Matrix{Float64}}}
    total::Float64
end

function upward(room::MessageRoom, f::Field, comb, spots::AbstractVector{Spot})
    parent, direction = comb
    below = Union{Nothing,Matrix{Float64}}[isfree(spot) ? nothing : copy(spot.values) for spot in spots]
    up = Vector{Union{Nothing,Matrix{Float64}}}(nothing, length(spots))
    total = sum(spot.scale for spot in spots)
    for i in length(spots):-1:1
        below[i] === nothing && continue
        total += normalise!(below[i])
        i == 1 && break
        above = spots[parent[i]]
        up[i] = message_up!(zeros(num_states(f), num_boxes(above)), room, f, direction[i], below[i], spots[i].places, above.places)
        below[parent[i]] === nothing ? (below[parent[i]] = copy(up[i])) : (below[parent[i]] .*= up[i])
    end
    below[1] === nothing && return Upward(below, up, 0.0)
    return Upward(below, up, total + log(sum(first_values(f, spots[1].places) .* below[1])))
end

"Divides by the largest value; returns its logarithm."
function normalise!(values)
    top = maximum(values)
    top > 0 || return -Inf
    values ./= top
    return log(top)
end

"p(s, d) of the first position, (states, boxes)."
function first_values(f::Field, places)
    values = Float64.(reshape(f.first, :, 1))
    for c in eachindex(places)
        values = times_channel(values, Float64.(f.first_offsets[c][:, places[c]]))
    end
    return values
end

"""
    field_log_likelihoods(field, spots) -> log p(x) under each comb

`spots`: one for each position of an image.
"""
function field_log_likelihoods(f::Field, spots::AbstractVector{Spot}, room::MessageRoom=MessageRoom(f))
    return [upward(room, f, comb, spots).total for comb in combs(f)]
end

"What EM counts of a field's parameters."
struct FieldCounts
    first::Vector{Float64}
    first_offsets::Vector{Matrix{Float64}}
    next::Vector{Matrix{Float64}}
    next_offsets::Vector{Vector{Array{Float64,4}}}
end

FieldCounts(f::Field) =
    FieldCounts(zeros(size(f.first)), [zeros(size(o)) for o in f.first_offsets], [zeros(size(p)) for p in f.next],
                [[zeros(size(o)) for o in offsets] for offsets in f.next_offsets])

function clear!(counts::FieldCounts)
    fill!(counts.first, 0.0)
    foreach(a -> fill!(a, 0.0), counts.first_offsets)
    foreach(a -> fill!(a, 0.0), counts.next)
    foreach(offsets -> foreach(a -> fill!(a, 0.0), offsets), counts.next_offsets)
end

"Adds the counts of `more`, another thread's."
function add!(counts::FieldCounts, more::FieldCounts)
    counts.first .+= more.first
    foreach((a, b) -> a .+= b, counts.first_offsets, more.first_offsets)
    foreach((a, b) -> a .+= b, counts.next, more.next)
    foreach((a, b) -> foreach((x, y) -> x .+= y, a, b), counts.next_offsets, more.next_offsets)
    return counts
end

"""
    field_posteriors!(posteriors, counts, field, spots, room) -> log p(x)

`posteriors[i]`, (states, boxes), becomes p(s_i, d_i | x), over both combs; the expected counts of the parameters, `counted` times, are added to `counts`, if
there are any.
"""
function field_posteriors!(posteriors, counts::Union{Nothing,FieldCounts}, f::Field, spots::AbstractVector{Spot}, room::MessageRoom=MessageRoom(f),
                           counted::Float64=1.0)
    trees = combs(f)
    found = [upward(room, f, comb, spots) for comb in trees]
    foreach(p -> fill!(p, 0.0), posteriors)
    top = maximum(each.total for each in found)
    top > -Inf || return -Inf  # an impossible image: it counts for nothing
    weights = [exp(each.total - top) for each in found]
    total = top + log(sum(weights)) - log(2)
    for (comb, each, weight) in zip(trees, found, weights ./ sum(weights))
        weight > LEAST_OF_TREE && downward!(posteriors, counts, room, f, comb, spots, each, weight, counted)
    end
    return total
end

# A comb that has less of an image is left out of its posterior.
const LEAST_OF_TREE = 1e-4

times(a, ::Nothing) = copy(a)
times(a, b) = a .* b

function downward!(posteriors, counts, room, f, comb, spots, up::Upward, weight, counted)
    parent, direction = comb
    above = Vector{Matrix{Float64}}(undef, length(spots))  # p(h_i, what is not below i), to scale
    for i in eachindex(spots)
        if i == 1
            above[1] = first_values(f, spots[1].places)
        else
            own = times(above[parent[i]], up.below[parent[i]])
            up.up[i] === nothing || divide!(own, up.up[i])
            normalise!(own)
            above[i] = message_down!(zeros(num_states(f), num_boxes(spots[i])), room, f, direction[i], own, spots[parent[i]].places,
                                     spots[i].places)
            normalise!(above[i])
            counts === nothing || count_edge!(counts, room, f, direction[i], own, up.below[i], spots[parent[i]], spots[i], up.up[i], counted * weight)
        end
        share = times(above[i], up.below[i])
        total = sum(share)
        posteriors[i] .+= (weight / total) .* share
        if i == 1 && counts !== nothing
            count_first!(counts, f, share, spots[1].places, counted * weight / total)
        end
    end
end

function divide!(a, b)
    @inbounds for i in eachindex(a, b)
        a[i] = b[i] > 0 ? a[i] / b[i] : 0.0
    end
end

function count_first!(counts, f, share, places, weight)
    counts.first .+= weight .* vec(sum(share, dims=2))
    for (c, offsets) in enumerate(counts.first_offsets)
        offsets .+= weight .* channel_marginal(share, places, c, size(offsets, 2))
    end
end

"Adds the expected counts of one edge, from a parent with `own`, what all but this child says of it, to a child with `below`."
function count_edge!(counts, room, f, a, own, below, parent, child, up, weight)
    known = below === nothing ? ones(num_states(f), num_boxes(child)) : below
    total = up === nothing ? sum(own) : sum(own .* up)
    total > 0 || return
    scale = weight / total
    n = num_boxes(parent)
    for (q2, states2) in enumerate(f.members)
        m2 = length(states2)
        take_part!(room, known, states2)
        for (q, states) in enumerate(f.members)
            m, start = length(states), first(states) - 1
            edge_tables!(room, f, a, q, q2, child.places, parent.places; back=true)
            through, sums = through_offsets!(room, m2, child.places, parent.places), roomy(room.sums, m * m2)
            fill!(view(sums, 1:m * m2), 0.0)
            @inbounds for box in 1:n, j in 1:m2
                p = through[j + m2 * (box - 1)]
                @simd ivdep for i in 1:m
                    sums[i + m * (j - 1)] = muladd(p, own[start + i, box], sums[i + m * (j - 1)])
                end
            end
            pair, pairs = room.next[a][q, q2], counts.next[a]
            for j in 1:m2, i in 1:m
                pairs[states[i], states2[j]] += scale * pair[i, j] * sums[i + m * (j - 1)]
            end
            from, back = roomy(room.from, m2 * n), room.back[a][q, q2]  # own, through p(s' | s)
            fill!(view(from, 1:m2 * n), 0.0)
            @inbounds for box in 1:n, i in 1:m
                p = own[start + i, box]
                @simd ivdep for j in 1:m2
                    from[j + m2 * (box - 1)] = muladd(back[j, i], p, from[j + m2 * (box - 1)])
                end
            end
            for c in eachindex(parent.places)
                others = through_offsets!(room, m2, child.places, parent.places, c)
                count_channel!(counts.next_offsets[a][c], q, q2, room.tables[c], from, others, m2, c, parent.places, child.places, scale)
            end
        end
    end
end

"counts[d, d'] += table[d, d'] sum over all else of from[., d, .] others[., d', .]; both have the parent's places but for channel c of `others`."
function count_channel!(counts, q, q2, table, from::Vector{Float64}, others::Vector{Float64}, m2, c, parent, child, scale)
    left, right = m2, 1
    for before in 1:c - 1
        left *= length(parent[before])
    end
    for after in c + 1:length(parent)
        right *= length(parent[after])
    end
    n, n2 = length(parent[c]), length(child[c])
    @inbounds for j in 1:n2, i in 1:n
        total = 0.0
        for r in 0:right - 1
            x, y = left * (i - 1 + n * r), left * (j - 1 + n2 * r)
            @simd for l in 1:left
                total = muladd(from[x + l], others[y + l], total)
            end
        end
        counts[parent[c][i], child[c][j], q, q2] += scale * table[i, j] * total
    end
end

"""
    channel_step(field, a, c, p)

p(s', d'_c) of a position, (states, offsets), from p(s, d_c) of the one before it in direction `a`: channels are independent given the states.
"""
function channel_step(f::Field, a::Int, c::Int, p::Matrix{Float64})
    found = zeros(size(p))
    for (q, own) in enumerate(f.members), (q2, next) in enumerate(f.members)
        moved = p[own, :] * f.next_offsets[a][c][:, :, q, q2]
        found[next, :] .+= transpose(f.next[a][own, next]) * moved
    end
    return found
end

"""
    field_beliefs(field, spots, room) -> (log p(x), marginals, joint)

`marginals[c]`: p(s_i, d_ic | x) of each channel, (states, offsets, positions); `joint[i]`: p(s_i, d_i | x), (states, boxes), of the positions
of which something is known. Positions that have nothing known below them in a comb take no joint table: their marginals go on channel by
channel.
"""
function field_beliefs(f::Field, spots::AbstractVector{Spot}, room::MessageRoom=MessageRoom(f))
    trees = combs(f)
    found = [upward(room, f, tree, spots) for tree in trees]
    top = maximum(each.total for each in found)
    out = [zeros(num_states(f), d, length(spots)) for d in num_offsets(f)]
    joint = [zeros(isfree(spot) ? (0, 0) : size(spot.values)) for spot in spots]
    top > -Inf || return top, out, joint
    weights = [exp(each.total - top) for each in found]
    total = sum(weights)
    for (tree, each, weight) in zip(trees, found, weights ./ total)
        weight > LEAST_OF_TREE && beliefs_down!(out, joint, room, f, tree, spots, each, weight)
    end
    foreach(each -> each ./= sum(each, dims=(1, 2)), out)
    foreach(each -> isempty(each) || (each ./= sum(each)), joint)
    return top + log(total) - log(2), out, joint
end

function beliefs_down!(out, joint, room, f, (parent, direction), spots, up::Upward, weight)
    above = Vector{Matrix{Float64}}(undef, length(spots))           # p(h_i, what is not below i), where something is
    alone = Vector{Vector{Matrix{Float64}}}(undef, length(spots))   # p(s_i, d_ic | x) of each channel
    for i in eachindex(spots)
        if up.below[i] === nothing
            before = i == 1 ? [] : alone[parent[i]]
            alone[i] = i == 1 ? [Float64.(f.first .* offsets) for offsets in f.first_offsets] :
                       [channel_step(f, direction[i], c, before[c]) for c in eachindex(before)]
        else
            if i == 1
                above[1] = first_values(f, spots[1].places)
            else
                own = times(above[parent[i]], up.below[parent[i]])
                divide!(own, up.up[i])
                normalise!(own)
                above[i] = message_down!(zeros(num_states(f), num_boxes(spots[i])), room, f, direction[i], own, spots[parent[i]].places,
                                         spots[i].places)
                normalise!(above[i])
            end
            share = times(above[i], up.below[i])
            share ./= sum(share)
            alone[i] = [channel_marginal(share, spots[i].places, c, d) for (c, d) in enumerate(num_offsets(f))]
            isempty(joint[i]) || (joint[i] .+= weight .* share)
        end
        for (c, p) in enumerate(alone[i])
            out[c][:, :, i] .+= weight .* p
        end
    end
end

"The sums of values (states, boxes) over all channels but c, (states, offsets)."
function channel_marginal(values, places, c, D)
    found = zeros(size(values, 1), D)
    found[:, places[c]] = sum_others(values, length.(places), c)
    return found
end

"""
    usual_places(field) -> offsets of each channel

Those that any position has with more than `LEAST_OF_OFFSET` before anything is known.
"""
function usual_places(f::Field)
    _, marginals, _ = field_beliefs(f, [free_spot(f) for _ in 1:num_positions(f)])
    return [findall(d -> maximum(sum(view(each, :, d, :), dims=1)) > LEAST_OF_OFFSET, axes(each, 2)) for each in marginals]
end

const LEAST_OF_OFFSET = 1e-5

"""
Limits the spots of which nothing is known to offsets that are `usual`, or as those of the image's known patches, or one or two beside or between: all
combinations of 32 offsets are too many.
"""
function limit_free!(spots::AbstractVector{Spot}, usual)
    known = [spot for spot in spots if !isfree(spot)]
    (isempty(known) || length(known) == length(spots)) && return
    places = map(enumerate(usual)) do (c, own)
        D = length(first(spot for spot in spots if isfree(spot)).places[c])
        seen = reduce(union, (spot.places[c] for spot in known))
        near = [d for d in 1:D if minimum(seen) - 2 <= d <= maximum(seen) + 2]
        D > 1 ? sort(union(own, near)) : [1]
    end
    for (i, spot) in enumerate(spots)
        isfree(spot) && (spots[i] = Spot(places, spot.values, 0.0))
    end
end

"""
One EM step of all parameters of a field: of each distribution as [`table_step!`](@ref) takes it, but that the pseudocount of offsets is not
spread evenly: of those that follow an offset it goes to others as far away as the two groups have them, of the first position's to those of
all states. What is rare then stays near what is seen.
"""
function field_step!(f::Field, counts::FieldCounts, step, pseudocount)
    S, Q = num_states(f), length(f.members)
    distribution_step!(f.first, counts.first, step, pseudocount)
    for (offsets, own) in zip(f.first_offsets, counts.first_offsets)
        spread = spread_like(vec(sum(own, dims=1)))
        for s in 1:S
            distribution_step!(view(offsets, s, :), view(own, s, :), step, pseudocount, spread)
        end
    end
    for a in 1:2
        for s in 1:S
            distribution_step!(view(f.next[a], s, :), view(counts.next[a], s, :), step, pseudocount)
        end
        for (offsets, own) in zip(f.next_offsets[a], counts.next_offsets[a]), q2 in 1:Q, q in 1:Q
            D = size(offsets, 1)
            steps = zeros(2D - 1)
            for d2 in 1:D, d in 1:D
                steps[d2 - d + D] += own[d, d2, q, q2]
            end
            for d in 1:D
                distribution_step!(view(offsets, d, :, q, q2), view(own, d, :, q, q2), step, pseudocount, spread_like(steps[D + 1 - d:2D - d]))
            end
        end
    end
end

"A distribution like these counts, with a little of all."
spread_like(counts) = (counts .+ 1e-5 * (sum(counts) + 1e-5)) ./ (sum(counts) + length(counts) * 1e-5 * (sum(counts) + 1e-5))

function distribution_step!(p, counts, step, pseudocount, spread=fill(1 / length(p), length(p)))
    total = sum(counts) + pseudocount
    has_flow(total) || return
    for k in eachindex(p)
        p[k] = (1 - step) * p[k] + step * (counts[k] + pseudocount * spread[k]) / total
    end
end

"""
    sample_field!(states, offsets, field, spots, rng)

Draws from p(s, d | x): the state, (positions, draws), and the offset of each channel from 1, (channels, positions, draws).
"""
function sample_field!(states, offsets, f::Field, spots::AbstractVector{Spot}, rng, room::MessageRoom=MessageRoom(f))
    trees = combs(f)
    found = [upward(room, f, tree, spots) for tree in trees]
    top = maximum(each.total for each in found)
    weights = [exp(each.total - top) for each in found]
    for n in axes(states, 2)
        which = draw(weights, rng)
        sample_comb!(view(states, :, n), view(offsets, :, :, n), f, trees[which], spots, found[which], rng)
    end
end

function sample_comb!(states, offsets, f, (parent, direction), spots, up::Upward, rng)
    for i in eachindex(spots)
        places, below = spots[i].places, up.below[i]
        if i == 1 && below === nothing
            states[1] = draw(f.first, rng)
            for c in eachindex(places)
                offsets[c, 1] = draw(view(f.first_offsets[c], states[1], :), rng)
            end
        elseif below === nothing
            s, a = states[parent[i]], direction[i]
            states[i] = draw(view(f.next[a], s, :), rng)
            for c in eachindex(places)
                offsets[c, i] = draw(view(f.next_offsets[a][c], offsets[c, parent[i]], :, f.group[s], f.group[states[i]]), rng)
            end
        else
            weights = i == 1 ? first_values(f, places) : next_values(f, direction[i], states[parent[i]], view(offsets, :, parent[i]), places)
            below === nothing || (weights .*= below)
            chosen = CartesianIndices(weights)[draw(vec(weights), rng)]
            states[i] = chosen[1]
            box = chosen[2] - 1
            for c in eachindex(places)
                box, place = divrem(box, length(places[c]))
                offsets[c, i] = places[c][place + 1]
            end
        end
    end
end

"p(s', d' | s, d), (states, boxes), of a child in direction `a`."
function next_values(f::Field, a, s, d, places)
    values = Float64.(reshape(f.next[a][s, :], :, 1))
    for c in eachindex(places)
        own = [Float64(f.next_offsets[a][c][d[c], d2, f.group[s], f.group[s2]]) for s2 in eachindex(f.group), d2 in places[c]]
        values = times_channel(values, own)
    end
    return values
end

function draw(weights, rng)
    left = uniform!(rng) * sum(weights)
    for k in eachindex(weights)
        left -= weights[k]
        left < 0 && return k
    end
    return findlast(>(0), weights)
end
