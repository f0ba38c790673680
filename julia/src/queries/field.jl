# What a field of states and offsets, and patches below it, say of images of which not all is known.

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
    out = [zeros(num_states(f), d, length(spots)) for d in num_offsets(f)]
    joint = [zeros(isfree(spot) ? (0, 0) : size(spot.values)) for spot in spots]
    found, shares, total = upward_both(f, spots, room)
    for (tree, up, weight) in zip(combs(f), found, shares)
        weight > LEAST_OF_TREE || continue
        parent, direction = tree
        alone = Vector{Vector{Matrix{Float64}}}(undef, length(spots))  # p(s_i, d_ic | x) of each channel
        downward(room, f, tree, spots, up) do i, share, _
            if share !== nothing
                alone[i] = [channel_marginal(share, spots[i].places, c, d) for (c, d) in enumerate(num_offsets(f))]
                isempty(joint[i]) || (joint[i] .+= weight .* share)
            elseif i == 1
                alone[i] = [Float64.(f.first .* offsets) for offsets in f.first_offsets]
            else
                alone[i] = [channel_step(f, direction[i], c, before) for (c, before) in enumerate(alone[parent[i]])]
            end
            for (c, p) in enumerate(alone[i])
                out[c][:, :, i] .+= weight .* p
            end
        end
    end
    total > -Inf || return total, out, joint
    foreach(each -> each ./= sum(each, dims=(1, 2)), out)
    foreach(each -> isempty(each) || (each ./= sum(each)), joint)
    return total, out, joint
end

"The field of one channel, as if the others did not exist."
of_channel(f::Field, c::Int) = Field(f.rows, f.columns, f.group, f.members, f.first, f.first_offsets[c:c], f.next,
                                     [offsets[c:c] for offsets in f.next_offsets])

"What a field of all channels is limited by: a field and room for messages of each channel."
channel_rooms(f::Field) = [(own, MessageRoom(own)) for own in (of_channel(f, c) for c in eachindex(f.first_offsets))]

# What a position of which nothing is known may have of an offset, at most, to do without it.
const LEAST_OF_OFFSET = 1e-5

"""
    limit_free!(spots, channels)

Limits the spots of which nothing is known to offsets that have more than `LEAST_OF_OFFSET` there, given what is known of the channel alone,
in either comb: all combinations of 32 offsets of three channels are too many. `channels`: [`channel_rooms`](@ref) of the field.
"""
function limit_free!(spots::AbstractVector{Spot}, channels)
    free = findall(isfree, spots)
    (isempty(free) || length(free) == length(spots)) && return
    likely = [likely_offsets(own, [of_channel(spot, c) for spot in spots], room) for (c, (own, room)) in enumerate(channels)]
    for i in free
        places = [findall(>(LEAST_OF_OFFSET), view(share, :, i)) for share in likely]
        spots[i] = Spot([isempty(own) ? [1] : own for own in places], spots[i].values, 0.0)  # none: impossible, or nobody asks
    end
end

"What a spot says of one channel, under all offsets of the others."
of_channel(spot::Spot, c::Int) =
    Spot(spot.places[c:c], isfree(spot) ? spot.values : sum_others(spot.values, length.(spot.places), c), spot.scale)

"Of a field of one channel: what each offset has at each position, (offsets, positions), in the comb where that is more."
function likely_offsets(f::Field, spots::Vector{Spot}, room::MessageRoom)
    found = zeros(num_offsets(f)[1], length(spots))
    for tree in combs(f)
        up = upward(room, f, tree, spots)
        up.total > -Inf || continue
        downward(room, f, tree, spots, up) do i, share, _
            share === nothing && return  # the comb goes on without offsets there
            for (offset, d) in enumerate(spots[i].places[1])
                found[d, i] = max(found[d, i], sum(view(share, :, offset)))
            end
        end
    end
    return found
end

"""
    sample_field!(states, offsets, field, spots, rng)

Draws from p(s, d | x): the state, (positions, draws), and the offset of each channel from 1, (channels, positions, draws).
"""
function sample_field!(states, offsets, f::Field, spots::AbstractVector{Spot}, rng, room::MessageRoom=MessageRoom(f))
    trees, (found, shares, _) = combs(f), upward_both(f, spots, room)
    for n in axes(states, 2)
        which = draw(shares, rng)
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

"""
    field_draws!(totals, states, offsets, field, emissions, patches, mask, seed)

Draws from p(s, d | what is known): states and offsets from 0, Int32 `(positions, draws, images)` and `(channels, positions, draws, images)`.
`totals`: log p(what is known); where it is -Inf nothing is drawn.
"""
function field_draws!(totals, states, offsets, f::Field, em::Emissions, patches, mask, seed)
    on_images(f, em, patches, mask) do n, terms, spots, room
        totals[n] = field_log_likelihood(f, spots, room)
        if totals[n] > -Inf
            sample_field!(view(states, :, :, n), view(offsets, :, :, :, n), f, spots, SplitMix(seed, n), room)
            states[:, :, n] .-= 1
            offsets[:, :, :, n] .-= 1
        end
    end
end

"""
    field_marginals!(totals, joins, field, emissions, patches, mask, marginals...)

Of each image log p(what is known), and of each position p(s, d_c | what is known), Float64 `(states, offsets, positions, images)` for each
channel, and p(j | what is known), Float32 `(joins, positions, images)`, unless `joins` is empty.
"""
function field_marginals!(totals, joins, f::Field, em::Emissions, patches, mask, marginals...)
    on_images(f, em, patches, mask) do n, terms, spots, room
        totals[n], found, joint = field_beliefs(f, spots, room)
        totals[n] > -Inf || return
        for (out, own) in zip(marginals, found)
            out[:, :, :, n] = own
        end
        isempty(joins) && return
        for i in eachindex(spots)
            if isfree(spots[i])
                joins[:, i, n] = transpose(em.join) * vec(sum(view(found[1], :, :, i), dims=2))
            else
                joins[:, i, n] .= 0
                joins[terms[i].joins, i, n] = vec(sum(join_shares(em, terms[i], spots[i], joint[i])[1], dims=1))
            end
        end
    end
end

"""
    field_shares!(joins, offsets, number, field, emissions, patches, mask)

Of the patches with `number` above 0, (positions, images), their column in `joins`, Float32 `(joins, patches)`: p(j | what is known of the
image); and in `offsets[c]`, Float32 `(joins, offsets, patches)`: p(j, d_c | what is known).
"""
function field_shares!(joins, offsets, number, f::Field, em::Emissions, patches, mask)
    on_images(f, em, patches, mask) do n, terms, spots, room
        _, _, joint = field_beliefs(f, spots, room)
        for i in eachindex(spots)
            own = number[i, n]
            own > 0 || continue
            by_state, by_channel = join_shares(em, terms[i], spots[i], joint[i])
            joins[terms[i].joins, own] = sum(by_state, dims=1)
            for (c, of) in enumerate(by_channel)
                offsets[c][terms[i].joins, spots[i].places[c], own] = of
            end
        end
    end
end

"""
    field_labels!(states, joins, offsets, field, emissions, patches)

Of each patch the most probable (s, d) given the image, and the most probable join given these, from 0: `(positions, images)`, offsets
`(channels, positions, images)`; zeros where the image is impossible.
"""
function field_labels!(states, joins, offsets, f::Field, em::Emissions, patches)
    on_images(f, em, patches, nothing) do n, terms, spots, room
        total, _, joint = field_beliefs(f, spots, room)
        total > -Inf || return
        for i in eachindex(spots)
            s, box = Tuple(argmax(joint[i]))
            states[i, n] = s - 1
            own = em.join[s, terms[i].joins] .* box_terms(terms[i])[:, box]
            joins[i, n] = terms[i].joins[argmax(own)] - 1
            box -= 1
            for c in eachindex(spots[i].places)
                box, place = divrem(box, length(spots[i].places[c]))
                offsets[c, i, n] = spots[i].places[c][place + 1] - 1
            end
        end
    end
end

"log p(s, d) of values from 0, states `(positions, images)` and offsets `(channels, positions, images)`, into `out`."
function field_log_prior!(out, f::Field, states, offsets)
    for n in eachindex(out)
        totals = map(combs(f)) do (parent, direction)
            sum(axes(states, 1)) do i
                s, d = states[i, n] + 1, view(offsets, :, i, n)
                i == 1 && return log(f.first[s]) + sum(log(f.first_offsets[c][s, d[c] + 1]) for c in eachindex(d))
                s0, d0, a = states[parent[i], n] + 1, view(offsets, :, parent[i], n), direction[i]
                log(f.next[a][s0, s]) + sum(log(f.next_offsets[a][c][d0[c] + 1, d[c] + 1, f.group[s0], f.group[s]]) for c in eachindex(d))
            end
        end
        out[n] = log_add(totals...) - log(2)
    end
end

"""
    field_anomalies!(out, field, emissions, patches)

-log p(x_i | all other patches) of each patch, Float64 `(positions, images)`, by leaving out each in turn.
"""
function field_anomalies!(out, f::Field, em::Emissions, patches)
    on_images(f, em, patches, nothing) do n, terms, spots, room
        whole, others, channels = field_log_likelihood(f, spots, room), collect(spots), channel_rooms(f)
        for i in eachindex(others)
            others[i] = free_spot(f)
            limit_free!(others, channels)
            out[i, n] = field_log_likelihood(f, others, room) - whole
            others[i] = spots[i]
        end
    end
end
