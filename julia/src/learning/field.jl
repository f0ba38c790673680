# p(h) over a grid of patches where the hidden value of a position is a state and the offset of each channel, h = (s, d), so that neighbours
# know of each other's brightness and colour to the step:
#
#     p(h) = 1/2 sum over two combs of  p(s_1) prod_c p_c(d_1c | s_1)
#                                       prod over edges i -> j of  p(s_j | s_i) prod_c p_c(d_jc | d_ic, g(s_i), g(s_j))
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
struct MessageRoom
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

"out[., o, .] = sum over i of table[o, i] in[., i, .], of `left` values before and `right` ones after."
function through_channel!(out::Vector{Float64}, table::Matrix{Float64}, in::Vector{Float64}, left, n, m, right)
    @inbounds for r in 0:right - 1, o in 1:m
        to, from, i = left * (o - 1 + m * r), left * n * r, 1
        @simd ivdep for l in 1:left
            out[to + l] = 0.0
        end
        while i + 3 <= n  # four at a time: `out` is read and written less often
            p1, p2, p3, p4 = table[o, i], table[o, i + 1], table[o, i + 2], table[o, i + 3]
            f2, f3, f4 = from + left, from + 2left, from + 3left
            @simd ivdep for l in 1:left
                out[to + l] += muladd(p2, in[f2 + l], p1 * in[from + l]) + muladd(p4, in[f4 + l], p3 * in[f3 + l])
            end
            from, i = from + 4left, i + 4
        end
        while i <= n
            p = table[o, i]
            @simd ivdep for l in 1:left
                out[to + l] = muladd(p, in[from + l], out[to + l])
            end
            from, i = from + left, i + 1
        end
    end
end

"""
The tables of an edge of direction `a` from group q to group q2, at the places of both ends, (of `to`, of `from`); `back`: against the edge,
as messages to the parent go.
"""
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
The message of a child with `values`, (states, the boxes of `from`), to its parent (`back`): sum over s', d' of
p(s' | s) prod_c p_c(d'_c | d_c) values[s', d'], into `out`, (states, the boxes of `to`); or of a parent to its child: the sum over s, d. `a`:
the edge's direction.
"""
function message!(out, room::MessageRoom, f::Field, a::Int, values, from, to; back::Bool)
    fill!(out, 0.0)
    for (g, own) in enumerate(f.members)
        take_part!(room, values, own)
        for (g2, others) in enumerate(f.members)
            q, q2 = back ? (g2, g) : (g, g2)
            edge_tables!(room, f, a, q, q2, from, to; back=back)
            weights = back ? room.next[a][q, q2] : room.back[a][q, q2]
            add_product!(out, others, weights, through_offsets!(room, length(own), from, to))
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
        up[i] = message!(zeros(num_states(f), num_boxes(above)), room, f, direction[i], below[i], spots[i].places, above.places; back=true)
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

# A comb that has less of an image is left out of its posterior.
const LEAST_OF_TREE = 1e-4

times(a, ::Nothing) = copy(a)
times(a, b) = a .* b

function divide!(a, b)
    @inbounds for i in eachindex(a, b)
        a[i] = b[i] > 0 ? a[i] / b[i] : 0.0
    end
end

"""
Goes down one comb on one image: `visit(i, share, own)` gets of position i p(s, d | x), (states, boxes), and, unless it is the first, what all
but its own message says of its parent's, to scale; nothing where nothing is known of i and all below it.
"""
function downward(visit, room::MessageRoom, f::Field, (parent, direction), spots::AbstractVector{Spot}, up::Upward)
    above = Vector{Matrix{Float64}}(undef, length(spots))  # p(h_i, what is not below i), to scale
    for i in eachindex(spots)
        up.below[i] === nothing && (visit(i, nothing, nothing); continue)
        own = nothing
        if i == 1
            above[1] = first_values(f, spots[1].places)
        else
            own = times(above[parent[i]], up.below[parent[i]])
            divide!(own, up.up[i])
            normalise!(own)
            above[i] = message!(zeros(num_states(f), num_boxes(spots[i])), room, f, direction[i], own, spots[parent[i]].places,
                                spots[i].places; back=false)
            normalise!(above[i])
        end
        share = times(above[i], up.below[i])
        share ./= sum(share)
        visit(i, share, own)
    end
end

"""
    upward_both(field, spots, room) -> (of each comb its messages, the combs' shares of p(x), log p(x))

The shares are 0 where p(x) is 0.
"""
function upward_both(f::Field, spots::AbstractVector{Spot}, room::MessageRoom=MessageRoom(f))
    found = [upward(room, f, tree, spots) for tree in combs(f)]
    top = maximum(each.total for each in found)
    top > -Inf || return found, [0.0, 0.0], -Inf
    shares = [exp(each.total - top) for each in found]
    return found, shares ./ sum(shares), top + log(sum(shares)) - log(2)
end

field_log_likelihood(f::Field, spots::AbstractVector{Spot}, room::MessageRoom=MessageRoom(f)) = upward_both(f, spots, room)[3]
