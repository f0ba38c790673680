# Patches below a field of states and offsets: p(x | h) = sum_j p(j | s) prod_c p_kc(x_c - step_c d_c | r), j = (k, r), h = (s, d). Their
# emissions' p_c(d | s) are those of the field's first position: what offsets are likely elsewhere, the field says.

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

"Of each join, the log of its largest p(j | s)."
largest_joins(em::Emissions) = [log(Float64(maximum(view(em.join, :, j)))) for j in axes(em.join, 2)]

"""
The terms and the spot of a patch with `rows`, of each shape, and its number in them, `own`: (shape, number). `most`: [`largest_joins`](@ref).
"""
function patch_terms(em::Emissions, most::Vector{Float64}, rows, own, cut::Float64)
    C, D = num_channels(em), [em.categories ÷ step for step in em.steps]
    k, n = own[1]
    all(channel -> channel.free[n], rows[k]) && return PatchTerms([], [], []), Spot([collect(1:d) for d in D], zeros(0, 0), 0.0)
    bounds = [largest_terms(em, most, rows[k], k, n) for (k, n) in own]
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
function largest_terms(em::Emissions, most, channels::Vector{<:ChannelRows}, k, n)
    joins = em.joins[k]
    all(channel -> possible(channel, n), channels) || return fill(-Inf, length(joins))
    bounds, of_channel = [scale_of(channels, n) + most[j] for j in joins], zeros(length(joins))
    for channel in channels
        channel.free[n] && continue
        fill!(of_channel, 0.0)
        @inbounds for row in rows_of(channel, n)
            factor = channel.factor[row]
            for head in eachindex(of_channel)
                of_channel[head] = max(of_channel[head], channel.values[head, row] * factor)
            end
        end
        bounds .+= log.(of_channel)
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
    found = copy(terms.channels[1])
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
Spreads a patch's posterior p(s, d | x), (states, boxes), over the joins that its terms have: p(s, j | x), (states, joins), and of each channel
p(j, d_c | x), (joins, places).
"""
function join_shares(em::Emissions, terms::PatchTerms, spot::Spot, posterior)
    own, boxes, ratio = Float64.(em.join[:, terms.joins]), box_terms(terms), copy(posterior)
    divide!(ratio, spot.values)
    by_state = own .* (ratio * transpose(boxes))
    boxes .*= transpose(own) * ratio
    sizes = length.(spot.places)
    return by_state, [sum_others(boxes, sizes, c) for c in eachindex(sizes)]
end

# Images that are done together: their rows, terms and messages are what memory holds.
const FIELD_IMAGES_AT_ONCE = 16

"Terms and spots, (positions, images), of some images' patches (variables, positions, images)."
function image_spots(em::Emissions, patches, mask, tried, cut)
    V, P, N = size(patches)
    flat(a) = a === nothing ? nothing : reshape(a, size(a, 1), P * N)
    rows, own = rows_by_shape(em, reshape(patches, V, P * N), flat(mask), flat(tried))
    most = largest_joins(em)
    terms, spots = Matrix{PatchTerms}(undef, P, N), Matrix{Spot}(undef, P, N)
    threads = Threads.nthreads()
    Threads.@threads for t in 1:threads
        for n in t:threads:P * N
            terms[n], spots[n] = patch_terms(em, most, rows, own[n], cut)
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
        out[n] = field_log_likelihood(f, spots, room)
    end
end

"Calls `work(n, terms, spots, room)` for each image, on all threads, with what its positions' patches say."
function on_images(work, f::Field, em::Emissions, patches::Array{<:Integer,3}, mask)
    threads = Threads.nthreads()
    for range in pieces(1:size(patches, 3), FIELD_IMAGES_AT_ONCE * threads)
        _, terms, spots = image_spots(em, patches[:, :, range], mask === nothing ? nothing : mask[:, :, range], nothing, CUT_EXACT)
        Threads.@threads for t in 1:threads
            room, channels = MessageRoom(f), channel_rooms(f)
            for n in t:threads:length(range)
                mask === nothing || limit_free!(view(spots, :, n), channels)
                work(range[n], view(terms, :, n), view(spots, :, n), room)
            end
        end
        pause()
    end
    return nothing
end
