# EM on a field of states and offsets: what is expected of its parameters given images, and their step.

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
    field_posteriors!(posteriors, counts, field, spots, room, weight = 1) -> log p(x)

`posteriors[i]`, (states, boxes), becomes p(s_i, d_i | x), over both combs; the expected counts of the parameters, times `weight`, are added to
`counts`, if there are any. Of each position something is known.
"""
function field_posteriors!(posteriors, counts::Union{Nothing,FieldCounts}, f::Field, spots::AbstractVector{Spot},
                           room::MessageRoom=MessageRoom(f), weight::Real=1)
    foreach(p -> fill!(p, 0.0), posteriors)
    found, shares, total = upward_both(f, spots, room)  # an impossible image counts for nothing
    for (tree, up, of_tree) in zip(combs(f), found, shares)
        of_tree > LEAST_OF_TREE || continue
        parent, direction = tree
        downward(room, f, tree, spots, up) do i, share, own
            posteriors[i] .+= of_tree .* share
            counts === nothing && return
            i == 1 ? count_first!(counts, share, spots[1].places, weight * of_tree) :
                     count_edge!(counts, room, f, direction[i], own, up, i, spots[parent[i]], spots[i], weight * of_tree)
        end
    end
    return total
end

function count_first!(counts, share, places, weight)
    counts.first .+= weight .* vec(sum(share, dims=2))
    for (c, offsets) in enumerate(counts.first_offsets)
        offsets .+= weight .* channel_marginal(share, places, c, size(offsets, 2))
    end
end

"The sums of values (states, boxes) over all channels but c, (states, offsets)."
function channel_marginal(values, places, c, D)
    found = zeros(size(values, 1), D)
    found[:, places[c]] = sum_others(values, length.(places), c)
    return found
end

"Adds the expected counts of the edge to position `i` from a parent with `own`, what all but this child says of it."
function count_edge!(counts, room, f, a, own, up::Upward, i, parent::Spot, child::Spot, weight)
    total = sum(own .* up.up[i])
    total > 0 || return
    scale, n = weight / total, num_boxes(parent)
    for (q2, states2) in enumerate(f.members)
        m2 = length(states2)
        take_part!(room, up.below[i], states2)
        for (q, states) in enumerate(f.members)
            m, start = length(states), first(states) - 1
            edge_tables!(room, f, a, q, q2, child.places, parent.places; back=true)
            through, sums = through_offsets!(room, m2, child.places, parent.places), roomy(room.sums, m * m2)
            fill!(view(sums, 1:m * m2), 0.0)
            @inbounds for box in 1:n, j in 1:m2
                p = through[j + m2 * (box - 1)]
                @simd ivdep for s in 1:m
                    sums[s + m * (j - 1)] = muladd(p, own[start + s, box], sums[s + m * (j - 1)])
                end
            end
            pair, pairs = room.next[a][q, q2], counts.next[a]
            for j in 1:m2, s in 1:m
                pairs[states[s], states2[j]] += scale * pair[s, j] * sums[s + m * (j - 1)]
            end
            from, back = roomy(room.from, m2 * n), room.back[a][q, q2]  # own, through p(s' | s)
            fill!(view(from, 1:m2 * n), 0.0)
            @inbounds for box in 1:n, s in 1:m
                p = own[start + s, box]
                @simd ivdep for j in 1:m2
                    from[j + m2 * (box - 1)] = muladd(back[j, s], p, from[j + m2 * (box - 1)])
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
                spread = spread_like(steps[D + 1 - d:2D - d])
                distribution_step!(view(offsets, d, :, q, q2), view(own, d, :, q, q2), step, pseudocount, spread)
            end
        end
    end
end

"A distribution like these counts, with a little of all; even where there are none."
function spread_like(counts)
    spread = counts .+ 1e-5 * (sum(counts) + 1e-5)
    return spread ./ sum(spread)
end

function distribution_step!(p, counts, step, pseudocount, spread=fill(1 / length(p), length(p)))
    total = sum(counts) + pseudocount
    has_flow(total) || return
    for k in eachindex(p)
        p[k] = (1 - step) * p[k] + step * (counts[k] + pseudocount * spread[k]) / total
    end
end
