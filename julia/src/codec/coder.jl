# A model as a codec: the tables by which an entropy coder codes one value of images after another, given those before it.
#
#     p(x) = sum_h p(h) prod_i p(x_i | h_i),    p(x_i | h) = sum_j p(j | h) prod_c sum_d p_c(d | h) p_jc(x_ic - step_c d)
#
# is what all models are (docs/compression.md): without offsets there is one channel, with d = 0; in a joint model j is h itself; a circuit
# over whole images is one position with one state. Images are coded patch by patch, in the order that suits p(h), a patch channel by channel,
# a channel variable by variable. p(h_i | coded patches) comes from p(h)'s circuit, and gives each circuit and offset its heads' weights; what
# the patch then turned out to be goes back as soft evidence.

"""
A channel of patches: the circuits of all shapes, the joins that their heads are, and the offsets. `anchor[i, g, j]` is p_j of the i-th value of group
g of the first variable, where a channel has offsets: what it leaves of them is far less than all. No `anchor`: there are none.
"""
struct CodingChannel{T}
    plans::Vector{CodingPlan{T}}
    joins::Vector{UnitRange{Int}}
    step::Int
    categories::Int
    group::Int                      # how many values are coded at a time
    order::Vector{Int}
    shift::Matrix{Float64}          # p_c(d | h), (offsets, states)
    by_state::Matrix{Float64}       # (states, offsets)
    anchor::Array{Float64,3}        # (values of a group, groups, joins)
    anchor_by_group::Array{Float64,3} # (groups, values of a group, joins)
    anchor_mass::Matrix{Float64}    # of each group of its values
    window::Vector{Int}             # the groups that have any, from 0
end

num_joins(c::CodingChannel) = last(c.joins[end])
num_offsets(c::CodingChannel) = size(c.shift, 1)
num_groups(c::CodingChannel) = cld(c.categories, c.group)
isanchored(c::CodingChannel) = !isempty(c.anchor)

"By how many groups an offset, from 1, moves values."
@inline moved_groups(c::CodingChannel, d) = c.step * (d - 1) ÷ c.group

"The groups from 0, modulo their number, of what is at most that far outside."
@inline wrapped(g, G) = g < 0 ? g + G : g >= G ? g - G : g

"""
    CodingChannel(circuits, step, shift)

`shift`: p_c(d | h), Float32 (states, offsets). Channels with offsets, whose circuits are those of a patch's channel, are worked out in Float32: its 24
bits are as many as a table has. Circuits of whole images weigh parts of an image that say far more than 2^60 against each other, and need Float64.
"""
function CodingChannel(circuits::Vector{Circuit}, step::Integer, shift::AbstractMatrix{Float32})
    return size(shift, 2) > 1 ? coding_channel(circuits, Int(step), shift, Float32) : coding_channel(circuits, Int(step), shift, Float64)
end

function coding_channel(circuits::Vector{Circuit}, step::Int, shift::AbstractMatrix{Float32}, ::Type{T}) where {T}
    C = Int(maximum(category_limits(circuits[1])))
    layouts, D = map(Layout, circuits), size(shift, 2)
    group = D == 1 ? coding_group(C) : gcd(step, coding_group(C))
    order = best_order(circuits, layouts, D == 1 ? 0 : narrowest(circuits, C))
    plans = [CodingPlan(c, layout, order, group, T) for (c, layout) in zip(circuits, layouts)]
    ends = cumsum([num_heads(c) for c in circuits])
    joins = [last - num_heads(c) + 1:last for (c, last) in zip(circuits, ends)]
    anchor = D == 1 ? zeros(0, 0, 0) : cat([first_distribution(plan) for plan in plans]...; dims=3)
    mass = zeros(size(anchor, 2), size(anchor, 3))
    for j in axes(mass, 2), g in axes(mass, 1)
        mass[g, j] = sum_in_order(view(anchor, :, g, j))  # `sum` adds in an order that depends on registers' width
    end
    by_state = plain.(shift)
    return CodingChannel{T}(plans, joins, step, C, group, order, permutedims(by_state), by_state, anchor, permutedims(anchor, (2, 1, 3)), mass,
                            findall(g -> any(>(0), view(mass, g, :)), axes(mass, 1)) .- 1)
end

"Values are coded in two steps: a group of about as many as there are groups, then one of it. Few are coded at once."
coding_group(categories) = categories <= 32 ? categories : nextpow(2, isqrt(categories))

"The variable of which fewest values are possible."
function narrowest(circuits, C)
    possible = fill(false, C, circuits[1].num_vars)
    for c in circuits, u in 1:num_units(c)
        isinput(c.kind[u]) && (view(possible, :, c.variable[u]) .|= probabilities(c, u) .> 0)
        pause(10 + C)
    end
    return argmin(vec(sum(possible, dims=1)))
end

"p(x) of the first variable under each head, a row each: (values of a group, groups, heads)."
function first_distribution(p::CodingPlan{T}) where {T}
    J, v, tile = num_heads(p.circuit), p.order[1], CodingTile(p)
    group, _, G = size(p.tables[v].value)
    out, weights = zeros(group, G, J), zeros(T, group, LANES)
    for some in Iterators.partition(1:J, LANES)
        heads = HeadWeights{T}(J)
        for (row, j) in enumerate(some)
            heads.weight[row, j] = 1
        end
        follow!(tile, p, p.steps[1], heads)
        for g in 1:G
            value_weights!(weights, tile, p, v, fill(g, LANES))
            for (row, j) in enumerate(some)
                factor = double_power(tile.above_exponent[row, p.layout.single[v]])
                out[:, g, j] .= without_tiny.(Float64.(view(weights, :, row)) .* factor)
            end
        end
        pause()
    end
    return out
end

"What is left out of a patch at a time, of rows and of joins."
const LeftOut = NamedTuple{(:rows, :joins),Tuple{Float64,Float64}}

const LITTLE = LeftOut((2.0^-10, 2.0^-11))

# Of a field, which loses some by the offsets left out too.
const LESS = LeftOut((2.0^-13, 2.0^-14))

"""
    Coder(prior, channels, join)

`channels[i]`: those of position i, or one entry for all positions. `prior`: the circuit of p(h), or its field, whose offsets take the place of
p_c(d | h); none where there is but one position, with one state. `join`: p(j | h), Float32 (states, joins); none where j is h.
"""
struct Coder
    prior::Union{Nothing,CodingPlan{Float64},CodingField}
    channels::Vector{Vector{CodingChannel}}
    join::Union{Nothing,Matrix{Float64}}
    by_join::Union{Nothing,Matrix{Float64}} # (joins, states)
    positions::Vector{Int}          # in the order in which they are coded
    left_out::LeftOut
end

function Coder(prior::Union{Nothing,Circuit}, channels::Vector{Vector{CodingChannel}}, join::Union{Nothing,Matrix{Float32}})
    tables = join === nothing ? nothing : plain.(join)
    by_join = join === nothing ? nothing : permutedims(tables)
    prior === nothing && return Coder(nothing, channels, tables, by_join, [1], LITTLE)
    layout = Layout(prior)
    order = best_order([prior], [layout], 0)
    return Coder(CodingPlan(prior, layout, order, Int(maximum(category_limits(prior))), Float64), channels, tables, by_join, order, LITTLE)
end

function Coder(prior::Field, channels::Vector{Vector{CodingChannel}}, join::Matrix{Float32})
    tables = plain.(join)
    return Coder(CodingField(prior), channels, tables, permutedims(tables), collect(1:num_positions(prior)), LESS)
end

"The coder that leaves out what has next to no share alone."
exact_coder(c::Coder) = Coder(c.prior, c.channels, c.join, c.by_join, c.positions, LeftOut((0.0, 0.0)))

channels(c::Coder, i) = c.channels[length(c.channels) == 1 ? 1 : i]
num_states(c::Coder) = size(channels(c, 1)[1].by_state, 1)

"Values of a patch."
patch_size(c::Coder) = sum(length(channel.order) for channel in channels(c, 1))

"Entries of the largest table."
widest_table(c::Coder) = maximum(max(channel.group, num_groups(channel)) for own in c.channels for channel in own)

"About how many bytes coding an image takes, of those that are coded at once."
function image_bytes(c::Coder)
    prior = c.prior isa CodingPlan ? tile_bytes(c.prior) : 0
    field = c.prior isa CodingField ? image_bytes(c.prior) : 0
    tiles = maximum(sum(channel_bytes, own) for own in c.channels)
    sums = num_joins(channels(c, 1)[1]) * (num_states(c) + maximum(num_offsets(channel) for channel in channels(c, 1)))
    return (prior + tiles) ÷ LANES + 16 * sums + field
end

"Of 16 images, and of rows as many as are usual."
channel_bytes(c::CodingChannel) = isanchored(c) ? USUAL_ROWS * maximum(tile_bytes, c.plans) : sum(tile_bytes, c.plans)
