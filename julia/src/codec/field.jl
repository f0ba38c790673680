# p(h) of a field of states and offsets (learning/field.jl), as a codec needs it: what known patches say of the next one, exactly but for offsets
# that have no share, by messages in both combs. Patches become known row after row, so that the known ones are a tree in each comb, and messages go
# only between known patches, of each of which few offsets are possible, and to the next, channel by channel. As everywhere in the codec only +, x and
# powers of two occur, in a fixed order.

"""
The field's tables in Float64, and of both combs the parent, the direction and the children of each position, row after row.
"""
struct CodingField
    field::Field{Float64}
    parent::Vector{Vector{Int}}
    direction::Vector{Vector{Int}}
    children::Vector{Vector{Vector{Int}}}
end

function CodingField(f::Field)
    plainly(tables) = [plain.(table) for table in tables]
    own = Field(f.rows, f.columns, f.group, plain.(f.first), plainly(f.first_offsets), plainly(f.next), map(plainly, f.next_offsets))
    trees = combs(own)
    children = [[findall(==(i), parent) for i in eachindex(parent)] for (parent, _) in trees]
    return CodingField(own, [parent for (parent, _) in trees], [direction for (_, direction) in trees], children)
end

# Of a channel so many offsets of a known patch are kept, those with the largest shares, none with less than this.
const MOST_PLACES, LEAST_PLACE = 8, 2.0^-14

"""
One comb on one image. `up[i]`: what position i and all that is known below it say of its parent's (s, d); `down[i]`: p(s, d) given all that is known but
not below i; both `(states, boxes)`, to scale, and older than what is known where they are not `fresh`. `weight`: the comb's share of the image.
"""
mutable struct CodingComb
    up::Vector{Matrix{Float64}}
    down::Vector{Matrix{Float64}}
    fresh_up::Vector{Bool}
    fresh_down::Vector{Bool}
    next::Matrix{Float64}               # of the next position, as `CodingFieldImage` has it
    weight::Float64
end

"""
What is known of one image: of each position the offsets (from 1) of each channel that are left, and p(patch | s, d) of them, `(states, boxes)`, the first
channel's fastest. `next`: p(s, d_1, ..., d_c | what is known) of the position and the channel c that are coded, (d_c, boxes of s and those before).
"""
mutable struct CodingFieldImage
    places::Vector{Vector{Vector{Int}}}
    values::Vector{Matrix{Float64}}
    combs::Vector{CodingComb}
    next::Matrix{Float64}
end

function CodingFieldImage(f::CodingField)
    P, none = num_positions(f.field), zeros(0, 0)
    comb() = CodingComb(fill(none, P), fill(none, P), fill(false, P), fill(false, P), none, 0.5)
    return CodingFieldImage([Vector{Int}[] for _ in 1:P], fill(none, P), [comb(), comb()], none)
end

"About how many bytes it takes."
image_bytes(f::CodingField) = 8 * num_positions(f.field) * num_states(f.field) * 5 * MOST_PLACES^2

"Scales numbers so that the largest is in [1, 2)."
function scale_up!(values::Array{Float64})
    largest = 0.0
    for x in values
        largest = x > largest ? x : largest
    end
    factor = double_power(-double_exponent(largest))
    @inbounds for i in eachindex(values)
        values[i] = without_tiny(values[i] * factor)
    end
    return values
end

"""
Sums `values`, (states, boxes of `from`), over the other end of an edge of direction `a`: into (states, boxes of `to`). `to` may have fewer channels: the
others' offsets are summed over. `back`: against the edge.
"""
function field_message(f::Field{Float64}, a::Int, values::Matrix{Float64}, from, to; back::Bool)
    boxes = prod(Int[length(places) for places in to])
    out = zeros(num_states(f), boxes)
    for (g, own) in enumerate(f.members), (g2, others) in enumerate(f.members)
        q, q2 = back ? (g2, g) : (g, g2)
        data = values[own, :]
        left = length(own)
        for c in eachindex(from)
            ends = c <= length(to) ? to[c] : [0]
            data = through_places(data, f.next_offsets[a][c], q, q2, left, from[c], ends, back)
            left *= length(ends)
        end
        add_states!(out, f.next[a], reshape(data, length(own), boxes), own, others, back)
    end
    return out
end

"Sums over the offsets `from` of one channel, before which there are `left` numbers; an end of 0 is all offsets together."
function through_places(data::Array{Float64}, table::Array{Float64,4}, q, q2, left, from, ends, back)
    n, m = length(from), length(ends)
    right = length(data) ÷ (left * n)
    out = zeros(left * m * right)
    @inbounds for r in 0:right - 1, (o, e) in enumerate(ends), (i, d) in enumerate(from)
        p = e == 0 ? 1.0 : back ? table[e, d, q, q2] : table[d, e, q, q2]
        to, at = left * (o - 1 + m * r), left * (i - 1 + n * r)
        @simd ivdep for l in 1:left
            out[to + l] += p * data[at + l]
        end
    end
    for i in eachindex(out)
        @inbounds out[i] = without_tiny(out[i])
    end
    return out
end

"Adds the sum over `own` states to that of `others`, of every box."
function add_states!(out, next::Matrix{Float64}, data, own, others, back)
    @inbounds for box in axes(data, 2), (i, s) in enumerate(own)
        x = data[i, box]
        for t in others
            out[t, box] += (back ? next[t, s] : next[s, t]) * x
        end
    end
end

times!(a::Matrix{Float64}, b::Matrix{Float64}) = (a .= without_tiny.(a .* b); a)

isknown(image::CodingFieldImage, i) = !isempty(image.values[i])

"What position `i`, without the subtree of its child `but`, says of its own (s, d), apart from what is above it."
function own_values(f::CodingField, image::CodingFieldImage, k::Int, i::Int, but::Int)
    values = copy(image.values[i])
    for j in f.children[k][i]
        j == but || !isknown(image, j) || scale_up!(times!(values, message_up!(f, image, k, j)))
    end
    return values
end

"The message of a known position to its parent."
function message_up!(f::CodingField, image::CodingFieldImage, k::Int, i::Int)
    comb = image.combs[k]
    if !comb.fresh_up[i]
        above = image.places[f.parent[k][i]]
        values = own_values(f, image, k, i, 0)
        comb.up[i] = scale_up!(field_message(f.field, f.direction[k][i], values, image.places[i], above; back=true))
        comb.fresh_up[i] = true
    end
    return comb.up[i]
end

"p(s, d) of a known position given all that is known but what it and those below it say, to scale."
function message_down!(f::CodingField, image::CodingFieldImage, k::Int, i::Int)
    comb = image.combs[k]
    if !comb.fresh_down[i]
        comb.down[i] = scale_up!(next_values(f, image, k, i, image.places[i]))
        comb.fresh_down[i] = true
    end
    return comb.down[i]
end

"The same of any position whose parent is known, of these offsets of its first channels, not to scale."
function next_values(f::CodingField, image::CodingFieldImage, k::Int, i::Int, places)
    p = f.parent[k][i]
    p == 0 && return first_boxes(f.field, places)
    said = times!(own_values(f, image, k, p, i), message_down!(f, image, k, p))
    normalise_weights!(said)
    return field_message(f.field, f.direction[k][i], said, image.places[p], places; back=false)
end

"p(s, d) of the first position."
function first_boxes(f::Field{Float64}, places)
    values = reshape(copy(f.first), :, 1)
    for (c, own) in enumerate(places)
        values = reshape([without_tiny(values[s, box] * f.first_offsets[c][s, d]) for s in axes(values, 1), box in axes(values, 2), d in own],
                         size(values, 1), :)
    end
    return values
end

"p(s, d_1, ..., d_c | what is known) of position `i`, of the offsets left of the channels before `c`: into `image.next`."
function predict!(f::CodingField, image::CodingFieldImage, i::Int, c::Int)
    D = num_offsets(f.field)
    places = [image.places[i][1:c - 1]; [collect(1:D[c])]]
    for (k, comb) in enumerate(image.combs)
        comb.next = next_values(f, image, k, i, places)
    end
    mixed = zeros(size(image.combs[1].next))
    for comb in image.combs
        mixed .+= without_tiny.(comb.weight .* comb.next)
    end
    image.next = permutedims(reshape(mixed, :, D[c]))  # offsets of the channel first
    return
end

"Position `i` is known: its `values` of the states and of the offsets left."
function know_position!(f::CodingField, image::CodingFieldImage, i::Int, values::Matrix{Float64})
    image.values[i] = scale_up!(values)
    shares = map(enumerate(image.combs)) do (k, comb)
        sum_in_order(without_tiny.(comb.weight .* next_boxes(f, comb, image.places[i]) .* image.values[i]))
    end
    total = sum_in_order(shares)
    for (k, comb) in enumerate(image.combs)
        total < TINY || (comb.weight = shares[k] / total)
        above = Set{Int}()
        j = i
        while j != 0
            push!(above, j)
            comb.fresh_up[j] = false
            j = f.parent[k][j]
        end
        for j in eachindex(comb.fresh_down)
            j in above || (comb.fresh_down[j] = false)
        end
    end
end

"Of the last channel's weights those of the offsets that are left, (states, boxes)."
function next_boxes(f::CodingField, comb::CodingComb, places)
    before = prod(Int[length(own) for own in places[1:end - 1]])
    boxes = reshape(comb.next, num_states(f.field), before, :)
    return reshape(boxes[:, :, places[end]], num_states(f.field), :)
end
