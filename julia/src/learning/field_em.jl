# Patches below a field of states and offsets: p(x | h) = sum_j p(j | s) prod_c p_kc(x_c - step_c d_c | r), j = (k, r), h = (s, d); and EM on
# p(x) = sum_h p(h) prod_i p(x_i | h_i), of the field, p(j | s) and all circuits.

"""
Shapes without a table of offsets, which are the field's: `join[s, j]` is p(j | s), and `joins[k]` are the heads of shape k.
"""
struct Shapes{E<:Engine}
    emissions::Emissions{E}
    most::Vector{Float64}       # log of each join's largest p(j | s)
end

Shapes(em::Emissions) = Shapes(em, [log(Float64(maximum(view(em.join, :, j)))) for j in axes(em.join, 2)])

"""
What the joins make of one patch under its offsets: `joins`, of the shapes' segments `(k, n, joins)`, n the patch's number in the rows of
shape k; `channels[c]`, (joins, places), p(x_c - step d | join), where the first channel has the scale.
"""
struct PatchTerms
    segments::Vector{Tuple{Int,Int,UnitRange{Int}}}
    joins::Vector{Int}
    channels::Vector{Matrix{Float64}}
end

# Joins, and offsets, that make less than exp(-CUT) of a patch's largest term are left out of it: less than float32 rounds when scores are
# exact, a tenth of a thousandth in EM.
const CUT_EXACT, CUT_EM = 20.0, 9.0

"The terms and the spot of a patch with `rows`, of each shape, and its number in them, `own`: (shape, number)."
function patch_terms(shapes::Shapes, rows, own, cut::Float64)
    em = shapes.emissions
    C, D = num_channels(em), [em.categories ÷ step for step in em.steps]
    k, n = own[1]
    all(channel -> channel.free[n], rows[k]) && return PatchTerms([], [], []), Spot([collect(1:d) for d in D], zeros(0, 0), 0.0)
    bounds = [largest_terms(shapes, rows[k], k, n) for (k, n) in own]
    best = maximum(maximum, bounds)
    segments, joins = Tuple{Int,Int,UnitRange{Int}}[], Int[]
    heads, largest = Int[], Float64[]
    for (i, (k, n)) in enumerate(own)
        from = length(joins) + 1
        for (head, bound) in enumerate(bounds[i])
            bound > best - cut || continue
            push!(joins, em.joins[k][head])
            push!(heads, head)
            push!(largest, bound)
        end
        from > length(joins) || push!(segments, (k, n, from:length(joins)))
    end
    isempty(joins) && return PatchTerms([], [], []), Spot([[1] for _ in D], zeros(num_states(em), 1), 0.0)
    places = [possible_places(rows, segments, heads, largest, c, D[c], best - cut) for c in 1:C]
    channels = [channel_terms(rows, segments, heads, c, D[c], places[c]) for c in 1:C]
    for (k, n, own_joins) in segments
        channels[1][own_joins, :] .*= exp(scale_of(rows[k], n) - best)
    end
    terms = PatchTerms(segments, joins, channels)
    return terms, Spot(places, Float64.(em.join[:, joins]) * box_terms(terms), best)
end

"The log of the largest that each head of shape `k` makes of patch `n`, under any offsets and in any state."
function largest_terms(shapes::Shapes, channels::Vector{<:ChannelRows}, k, n)
    joins = shapes.emissions.joins[k]
    all(channel -> possible(channel, n), channels) || return fill(-Inf, length(joins))
    bounds, most = [scale_of(channels, n) + shapes.most[j] for j in joins], zeros(length(joins))
    for channel in channels
        channel.free[n] && continue
        fill!(most, 0.0)
        @inbounds for row in rows_of(channel, n)
            factor = channel.factor[row]
            for head in eachindex(most)
                most[head] = max(most[head], channel.values[head, row] * factor)
            end
        end
        bounds .+= log.(most)
    end
    return bounds
end

"The offsets, from 1, under which a join may make more than exp(`least`)."
function possible_places(rows, segments, heads, largest, c, D, least)
    found = fill(false, D)
    for (k, n, joins) in segments
        channel = rows[k][c]
        channel.free[n] && return collect(1:D)
        mark_places!(found, channel, n, joins, heads, largest, least)
    end
    return findall(found)
end

function mark_places!(found, channel::ChannelRows, n, joins, heads, largest, least)
    own = rows_of(channel, n)
    @inbounds for j in joins
        head, most = heads[j], 0.0
        for row in own
            most = max(most, value(channel, head, row))
        end
        most *= exp(least - largest[j])
        for row in own
            found[channel.offset[row] + 1] |= value(channel, head, row) >= most
        end
    end
end

function channel_terms(rows, segments, heads, c, D, places)
    found, place = zeros(length(heads), length(places)), zeros(Int, D)
    place[places] = 1:length(places)
    for (k, n, joins) in segments
        channel = rows[k][c]
        channel.free[n] && (found[joins, :] .= 1.0)
        take_values!(found, channel, n, joins, heads, place)
    end
    return found
end

function take_values!(found, channel::ChannelRows, n, joins, heads, place)
    @inbounds for row in rows_of(channel, n)
        at = place[channel.offset[row] + 1]
        at > 0 || continue
        for j in joins
            found[j, at] = value(channel, heads[j], row)
        end
    end
end

"prod_c p(x_c - step d_c | join), (joins, boxes)."
function box_terms(terms::PatchTerms)
    found = terms.channels[1]
    for c in 2:length(terms.channels)
        found = times_channel(found, terms.channels[c])
    end
    return found
end

"The rows of all shapes of some patches, (variables, patches), and of each patch its shapes and its numbers in their rows."
function rows_by_shape(em::Emissions, x, mask, tried)
    own = [Tuple{Int,Int}[] for _ in axes(x, 2)]
    rows = map(eachindex(em.shapes)) do k
        of = tried === nothing ? collect(axes(x, 2)) : findall(n -> k - 1 in view(tried, :, n), axes(x, 2))
        foreach(((i, n),) -> push!(own[n], (k, i)), enumerate(of))
        pause()
        shape_rows(em, k, x[:, of], mask === nothing ? nothing : mask[:, of])
    end
    return rows, own
end

"""
Spreads a patch's posterior p(s, d | x), (states, boxes), over its joins: p(j | x) of the joins that its terms have, and p(j, d_c | x),
(joins, places), of each channel.
"""
function join_shares(em::Emissions, terms::PatchTerms, spot::Spot, posterior)
    ratio = copy(posterior)
    divide!(ratio, spot.values)
    shares = box_terms(terms) .* (transpose(Float64.(em.join[:, terms.joins])) * ratio)
    sizes = length.(spot.places)
    return vec(sum(shares, dims=2)), [sum_others(shares, sizes, c) for c in eachindex(sizes)]
end

# Images that are done together: their rows, terms and messages are what memory holds.
const FIELD_IMAGES_AT_ONCE = 16

"Terms and spots, (positions, images), of some images' patches (variables, positions, images)."
function image_spots(shapes::Shapes, patches, mask, tried, cut)
    V, P, N = size(patches)
    flat(a) = a === nothing ? nothing : reshape(a, size(a, 1), P * N)
    rows, own = rows_by_shape(shapes.emissions, reshape(patches, V, P * N), flat(mask), flat(tried))
    terms, spots = Matrix{PatchTerms}(undef, P, N), Matrix{Spot}(undef, P, N)
    threads = Threads.nthreads()
    Threads.@threads for t in 1:threads
        for n in t:threads:P * N
            terms[n], spots[n] = patch_terms(shapes, rows, own[n], cut)
        end
    end
    return rows, terms, spots
end

"""
    field_scores!(out, field, emissions, patches, mask = nothing)

log p(x) of images in nats, or of what `mask` does not hide, into `out`, Float64. `patches`: integers `(variables, positions, images)`.
"""
function field_scores!(out::Vector{Float64}, f::Field, em::Emissions, patches::Array{<:Integer,3}, mask=nothing)
    on_images(f, em, patches, mask) do n, terms, spots, room
        out[n] = log_add(field_log_likelihoods(f, spots, room)...) - log(2)
    end
end

"Calls `work(n, terms, spots, room)` for each image, on all threads, with what its positions' patches say."
function on_images(work, f::Field, em::Emissions, patches::Array{<:Integer,3}, mask)
    shapes, threads, usual = Shapes(em), Threads.nthreads(), mask === nothing ? Vector{Int}[] : usual_places(f)
    for range in pieces(1:size(patches, 3), FIELD_IMAGES_AT_ONCE * threads)
        _, terms, spots = image_spots(shapes, patches[:, :, range], mask === nothing ? nothing : mask[:, :, range], nothing, CUT_EXACT)
        mask === nothing || foreach(n -> limit_free!(view(spots, :, n), usual), eachindex(range))
        Threads.@threads for t in 1:threads
            room = MessageRoom(f)
            for n in t:threads:length(range)
                work(range[n], view(terms, :, n), view(spots, :, n), room)
            end
        end
        pause()
    end
    return nothing
end

"""
    field_draws!(totals, states, offsets, field, emissions, patches, mask, seed)

Draws from p(s, d | what is known): states and offsets from 0, Int32 `(positions, draws, images)` and `(channels, positions, draws, images)`.
`totals`: log p(what is known); where it is -Inf nothing is drawn.
"""
function field_draws!(totals, states, offsets, f::Field, em::Emissions, patches, mask, seed)
    on_images(f, em, patches, mask) do n, terms, spots, room
        totals[n] = log_add(field_log_likelihoods(f, spots, room)...) - log(2)
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
                joins[terms[i].joins, i, n] = join_shares(em, terms[i], spots[i], joint[i])[1]
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
            shares, by_channel = join_shares(em, terms[i], spots[i], joint[i])
            joins[terms[i].joins, own] = shares
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
    usual = usual_places(f)
    on_images(f, em, patches, nothing) do n, terms, spots, room
        whole, others = log_add(field_log_likelihoods(f, spots, room)...), collect(spots)
        for i in eachindex(others)
            others[i] = free_spot(f)
            limit_free!(others, usual)
            out[i, n] = log_add(field_log_likelihoods(f, others, room)...) - whole
            others[i] = spots[i]
        end
    end
end

"""
    FieldEMJob(field, emissions, patches; candidates = nothing, epochs = 10, batch_size = 256, step_size = (0.1, 0.01),
               pseudocount = 0.1, field_pseudocount = 0.1, seed = 0)

Mini-batch EM on log p(x) of shapes below a field, in place; arguments are those of [`OffsetEMJob`](@ref).
"""
mutable struct FieldEMJob{T<:Integer,E<:Engine,F<:Field} <: PatchJob{T}
    field::F
    emissions::Emissions{E}
    patches::Array{T,3}
    candidates::Union{Nothing,Array{UInt16,3}}
    epochs::Int
    batch_size::Int
    step_size::Tuple{Float64,Float64}
    pseudocount::Float64
    field_pseudocount::Float64
    seed::Int
    order::Vector{Int32}
    shuffled::Int
    batch::Union{Nothing,JointBatch{T}}
    epoch::Int
    position::Int
    total::Float64
    counts::Vector{FieldCounts}         # of each thread
    joins::Vector{Matrix{Float64}}
    counted::Vector{Bool}               # of each shape
end

function FieldEMJob(f::Field, em::Emissions, patches::Array{T,3}; candidates::Union{Nothing,Array{UInt16,3}}=nothing, epochs::Integer=10,
                    batch_size::Integer=256, step_size=(0.1, 0.01), pseudocount::Real=0.1, field_pseudocount::Real=0.1,
                    seed::Integer=0) where {T<:Integer}
    _, P, N = size(patches)
    N >= 1 || throw(ArgumentError("patches: found no samples"))
    P == num_positions(f) || throw(ArgumentError("patches: found $P positions, the field has $(num_positions(f))"))
    check_schedule(epochs, batch_size, step_size)
    check_pseudocount(pseudocount)
    check_pseudocount(field_pseudocount, "field_pseudocount")
    check_candidates(candidates, P, N)
    threads = Threads.nthreads()
    return FieldEMJob(f, em, patches, candidates, Int(epochs), Int(min(batch_size, N)), Float64.(step_size), Float64(pseudocount),
                      Float64(field_pseudocount), Int(seed), Int32.(1:N), -1, nothing, 0, 0, 0.0, [FieldCounts(f) for _ in 1:threads],
                      [zeros(size(em.join)) for _ in 1:threads], fill(false, length(em.shapes)))
end

# The field's parameters are few, and counting them is half of the work of messages: of large batches one image in so many counts for all.
const COUNTED, IMAGES_COUNTED = 4, 64

step_of(job::FieldEMJob) = step_by_batches(job)

function expect!(job::FieldEMJob)
    job.batch === nothing && begin_batch!(job)
    b, em, f, threads = job.batch, job.emissions, job.field, Threads.nthreads()
    shapes, every = Shapes(em), size(b.patches, 3) < IMAGES_COUNTED ? 1 : COUNTED
    for counts in job.counts
        clear!(counts)
    end
    foreach(joins -> fill!(joins, 0.0), job.joins)
    fill!(job.counted, false)
    for range in pieces(1:size(b.patches, 3), FIELD_IMAGES_AT_ONCE * threads)
        rows, terms, spots = image_spots(shapes, b.patches[:, :, range], nothing, b.tried === nothing ? nothing : b.tried[:, :, range], CUT_EM)
        weights = [[zeros(Float32, size(channel.values)) for channel in channels] for channels in rows]
        totals = zeros(threads)
        Threads.@threads for t in 1:threads
            room = MessageRoom(f)
            for n in t:threads:length(range)
                posteriors = [zeros(num_states(f), num_boxes(spot)) for spot in view(spots, :, n)]
                counts = (range[n] - 1) % every == 0 ? job.counts[t] : nothing
                totals[t] += field_posteriors!(posteriors, counts, f, view(spots, :, n), room, Float64(every))
                for (i, posterior) in enumerate(posteriors)
                    take_terms!(weights, job.joins[t], em, rows, terms[i, n], spots[i, n], posterior)
                end
            end
        end
        b.total += sum(totals)
        pause()
        for (k, channels) in enumerate(rows), (c, channel) in enumerate(channels)
            job.counted[k] |= circuit_flows!(em.shapes[k][c], channel.data, weights[k][c])
        end
    end
    return nothing
end

"Spreads a patch's posterior, (states, boxes), over its joins, and over their rows in the circuits."
function take_terms!(weights, joins, em, rows, terms::PatchTerms, spot::Spot, posterior)
    isempty(terms.joins) && return
    divide!(posterior, spot.values)
    boxes = box_terms(terms)
    own = Float64.(em.join[:, terms.joins])
    counts = own .* (posterior * transpose(boxes))
    for (i, j) in enumerate(terms.joins), s in axes(joins, 1)
        joins[s, j] += counts[s, i]
    end
    boxes = boxes .* (transpose(own) * posterior)
    sizes = length.(spot.places)
    for c in eachindex(sizes)
        by_place = sum_others(boxes, sizes, c)
        place = zeros(Int, em.categories ÷ em.steps[c])
        place[spot.places[c]] = 1:sizes[c]
        for (k, n, segment) in terms.segments, row in rows_of(rows[k][c], n)
            at = place[rows[k][c].offset[row] + 1]
            at > 0 || continue
            for j in segment
                weights[k][c][terms.joins[j] - first(em.joins[k]) + 1, row] = min(by_place[j, at], 1.0)
            end
        end
    end
end

function maximise!(job::FieldEMJob)
    em, step = job.emissions, step_of(job)
    field_step!(job.field, reduce(add!, job.counts), step, job.field_pseudocount)
    table_step!(em.join, sum(job.joins), step, job.field_pseudocount)
    for (k, shape) in enumerate(em.shapes)
        if job.counted[k]
            for (e, allowed) in zip(shape, em.allowed[k])
                apply!(e, step, job.pseudocount)
                limit_inputs!(circuit(e), allowed)
            end
        end
        foreach(release!, shape)
    end
    job.position = job.batch.last
    job.total += job.batch.total
    job.batch = nothing
    return nothing
end
