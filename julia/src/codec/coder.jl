# A model as a codec: the tables by which an entropy coder codes one value of images after another, given those before it.
#
#     p(x) = sum_h p(h) prod_i p(x_i | h_i),    p(x_i | h) = sum_j p(j | h) prod_c sum_d p_c(d | h) p_jc(x_ic - step_c d)
#
# is what all models are (docs/compression.md): without offsets there is one channel, with d = 0; in a joint model j is h itself; a circuit
# over whole images is one position with one state. Images are coded patch by patch, in the order that suits p(h), a patch channel by channel,
# a channel variable by variable. p(h_i | coded patches) comes from p(h)'s circuit, and gives each circuit and offset its heads' weights; what
# the patch then turned out to be goes back as soft evidence.

"""
A channel of patches: the circuits of all shapes, the joins that their heads are, and the offsets. `anchor[x, j]` is p_j(x) of the first
variable, where a channel has offsets: what it leaves of them is far less than all. No `anchor`: there are none.
"""
struct CodingChannel
    plans::Vector{CodingPlan}
    joins::Vector{UnitRange{Int}}
    step::Int
    categories::Int
    group::Int                      # how many values are coded at a time
    order::Vector{Int}
    shift::Matrix{Float64}          # p_c(d | h), (offsets, states)
    by_state::Matrix{Float64}       # (states, offsets)
    anchor::Matrix{Float64}
    anchor_mass::Matrix{Float64}    # of each group of its values
end

num_joins(c::CodingChannel) = last(c.joins[end])
num_offsets(c::CodingChannel) = size(c.shift, 1)
num_groups(c::CodingChannel) = cld(c.categories, c.group)
isanchored(c::CodingChannel) = !isempty(c.anchor)

"""
    CodingChannel(circuits, step, shift)

`shift`: p_c(d | h), Float32 (states, offsets).
"""
function CodingChannel(circuits::Vector{Circuit}, step::Integer, shift::AbstractMatrix{Float32})
    C = Int(maximum(category_limits(circuits[1])))
    layouts, D = map(Layout, circuits), size(shift, 2)
    group = D == 1 ? coding_group(C) : gcd(step, coding_group(C))
    order = best_order(circuits, layouts, D == 1 ? 0 : narrowest(circuits, C))
    plans = [CodingPlan(c, layout, order, group) for (c, layout) in zip(circuits, layouts)]
    ends = cumsum([num_heads(c) for c in circuits])
    joins = [last - num_heads(c) + 1:last for (c, last) in zip(circuits, ends)]
    anchor = D == 1 ? zeros(0, 0) : reduce(hcat, [first_distribution(plan, C) for plan in plans])
    mass = zeros(cld(size(anchor, 1), group), size(anchor, 2))
    for j in axes(anchor, 2), x in axes(anchor, 1)
        mass[cld(x, group), j] += anchor[x, j]
    end
    by_state = plain.(shift)
    return CodingChannel(plans, joins, Int(step), C, group, order, permutedims(by_state), by_state, anchor, mass)
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

"p(x) of the first variable under each head: (values, heads)."
function first_distribution(p::CodingPlan, C)
    J, v, tile = num_heads(p.circuit), p.order[1], CodingTile(p)
    out, weights = zeros(C, J), zeros(size(p.tables[v].value, 1))
    for j in 1:J
        heads = zeros(LANES, J)
        heads[:, j] .= 1.0
        follow!(reset!(tile), p, p.steps[1], heads)
        factor = double_power(tile.above_exponent[1, p.layout.single[v]])
        for g in axes(p.tables[v].mass, 2)
            value_weights!(weights, tile, p, v, 1, g)
            for (i, w) in enumerate(weights)
                x = (g - 1) * length(weights) + i
                x <= C && (out[x, j] = without_tiny(w * factor))
            end
        end
        pause()
    end
    return out
end

"""
    Coder(prior, channels, join)

`channels[i]`: those of position i, or one entry for all positions. `prior`: the circuit of p(h), none where there is but one position, with one
state. `join`: p(j | h), Float32 (states, joins); none where j is h.
"""
struct Coder
    prior::Union{Nothing,CodingPlan}
    channels::Vector{Vector{CodingChannel}}
    join::Union{Nothing,Matrix{Float64}}
    positions::Vector{Int}          # in the order in which they are coded
end

function Coder(prior::Union{Nothing,Circuit}, channels::Vector{Vector{CodingChannel}}, join::Union{Nothing,Matrix{Float32}})
    tables = join === nothing ? nothing : plain.(join)
    prior === nothing && return Coder(nothing, channels, tables, [1])
    layout = Layout(prior)
    order = best_order([prior], [layout], 0)
    return Coder(CodingPlan(prior, layout, order, Int(maximum(category_limits(prior)))), channels, tables, order)
end

channels(c::Coder, i) = c.channels[length(c.channels) == 1 ? 1 : i]
num_states(c::Coder) = size(channels(c, 1)[1].by_state, 1)

"Values of a patch."
patch_size(c::Coder) = sum(length(channel.order) for channel in channels(c, 1))

"Entries of the largest table."
widest_table(c::Coder) = maximum(max(channel.group, num_groups(channel)) for own in c.channels for channel in own)

"About how many bytes coding an image takes, of those that are coded at once."
function image_bytes(c::Coder)
    prior = c.prior === nothing ? 0 : tile_bytes(c.prior)
    tiles = maximum(sum(tile_bytes(p) for p in channel.plans) * (isanchored(channel) ? 2 : 1) for own in c.channels for channel in own)
    joins = num_joins(channels(c, 1)[1])
    sums = joins * ((c.join === nothing ? 1 : num_states(c)) + maximum(num_offsets(channel) for channel in channels(c, 1)))
    return (prior + tiles) ÷ LANES + 16 * sums
end
